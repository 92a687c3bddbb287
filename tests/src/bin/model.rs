//! `cargo run --release -p redlock-tests --bin model -- --quick`
//!
//! Searches small models of the algorithm for everything that may happen, and prints what came
//! out: nothing bad without a mistake, something bad with every mistake. `--mutant M4` tells how a
//! mistake leads to it. What the models are and what they leave out: `docs/model.md`.
//!
//! Exits with 1 if a model is violated or a mistake is not found out.

use std::io::{Write, stdout};
use std::process::ExitCode;

use clap::Parser;
use redlock_tests::model::cases::{Case, Effort, Outcome, Subject, all};
use redlock_tests::model::mutant::Mutant;

/// Transitions after which a search ends, whether there is more or not.
const CAP: usize = 800_000_000;

#[derive(Debug, Parser)]
#[command(about = "Searches models of the lock for everything that may happen")]
struct Options {
    /// Only what takes seconds.
    #[arg(long, conflicts_with = "long")]
    quick: bool,
    /// Also what takes more than a few minutes.
    #[arg(long)]
    long: bool,
    /// Only one of the models.
    #[arg(long)]
    only: Option<Subject>,
    /// Only this mistake, told step by step.
    #[arg(long, ignore_case = true)]
    mutant: Option<Mutant>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

impl Options {
    fn wants(&self, case: &Case) -> bool {
        let effort = match (self.quick, self.long) {
            (true, _) => Effort::Quick,
            (false, false) => Effort::Normal,
            (false, true) => Effort::Long,
        };
        case.effort <= effort
            && self.only.is_none_or(|only| case.subject == only)
            && self.mutant.is_none_or(|mutant| case.mutant() == Some(mutant))
    }
}

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let options = Options::parse();
    let mut outcomes = Vec::new();
    if !options.json {
        println!(
            "| model | mutant | unique states | transitions | depth | seconds | verdict | steps |"
        );
        println!("|---|---|--:|--:|--:|--:|---|--:|");
    }
    for case in all().iter().filter(|case| options.wants(case)) {
        let outcome = case.run(CAP);
        if !options.json {
            tell(&outcome, options.mutant.is_some());
        }
        outcomes.push(outcome);
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&outcomes)?);
    }
    let mut is_good = !outcomes.is_empty();
    for outcome in outcomes.iter().filter(|outcome| !outcome.verdict.is_good()) {
        let mutant = outcome.mutant.as_deref().unwrap_or("no mutant");
        eprintln!("not as it must be: {} ({mutant}): {}", outcome.model, outcome.verdict);
        is_good = false;
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One row as soon as it is known: some take minutes. Something bad is told in full, unless it was
/// looked for.
fn tell(outcome: &Outcome, in_full: bool) {
    let steps = match outcome.trace.len() {
        0 => String::new(),
        steps => steps.to_string(),
    };
    println!(
        "| {} | {} | {} | {} | {} | {:.1} | {} | {steps} |",
        outcome.model,
        outcome.mutant.as_deref().unwrap_or_default(),
        outcome.unique,
        outcome.transitions,
        outcome.depth,
        outcome.seconds,
        outcome.verdict,
    );
    if in_full || !outcome.verdict.is_good() {
        println!();
        for (index, step) in outcome.trace.iter().enumerate() {
            println!("{}. {step}", index + 1);
        }
        println!("\nSo {}.\n", outcome.fault.unwrap_or("nothing is wrong"));
    }
    // Whoever waits for a row does not wait for the next.
    let _ = stdout().flush();
}

//! What all scenarios found, as JSON or as tables, and whether it is what was wanted.

use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::goal::Goal;
use crate::plots::Plot;
use crate::scenario::{Result, Scenario};

/// What was found so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    sections: Vec<Section>,
    goals: Vec<Goal>,
    plots: Vec<Plot>,
}

#[derive(Debug)]
struct Section {
    name: String,
    table: String,
    figures: Value,
}

impl Report {
    pub(crate) fn add(&mut self, name: &str, found: &impl Scenario) -> Result<()> {
        self.sections.push(Section {
            name: name.to_owned(),
            table: found.to_string(),
            figures: serde_json::to_value(found)?,
        });
        self.goals.extend(found.goals());
        self.plots.extend(found.plots());
        Ok(())
    }

    /// What no noise explains.
    pub(crate) fn faults(&self) -> impl Iterator<Item = &Goal> {
        self.goals.iter().filter(|goal| goal.is_far_off())
    }

    pub(crate) fn plots(&self) -> &[Plot] {
        &self.plots
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let sections = self.sections.iter();
        let mut all: Map<String, Value> =
            sections.map(|section| (section.name.clone(), section.figures.clone())).collect();
        all.insert("goals".to_owned(), json!(self.goals));
        all.serialize(serializer)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Section { name, table, .. } in &self.sections {
            writeln!(f, "== {name}\n{}\n", table.trim_end())?;
        }
        writeln!(f, "== goals")?;
        self.goals.iter().try_for_each(|goal| writeln!(f, "{goal}"))
    }
}

//! What all scenarios found, as JSON or as tables, and whether it is what was wanted.

use std::fmt;
use std::path::Path;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::goal::Goal;
use crate::plots::Plot;
use crate::scenario::{Result, Scenario};

/// What was found so far. Its text is the list of goals: the tables are those of its sections.
#[derive(Debug, Default)]
pub(crate) struct Report {
    sections: Vec<Section>,
    /// Scenarios that could not be measured to the end.
    failures: Vec<String>,
}

/// One scenario.
#[derive(Debug)]
pub(crate) struct Section {
    name: &'static str,
    table: String,
    figures: Value,
    goals: Vec<Goal>,
    plots: Vec<Plot>,
}

impl Section {
    pub(crate) fn new(name: &'static str, found: &impl Scenario) -> Result<Self> {
        Ok(Self {
            name,
            table: found.to_string(),
            figures: serde_json::to_value(found)?,
            goals: found.goals(),
            plots: found.plots(),
        })
    }
}

impl Report {
    pub(crate) fn add(&mut self, section: Section) {
        self.sections.push(section);
    }

    pub(crate) fn fail(&mut self, failure: String) {
        self.failures.push(failure);
    }

    /// What no noise explains.
    pub(crate) fn faults(&self) -> Vec<String> {
        let far_off = self.goals().filter(|goal| goal.is_far_off()).map(Goal::to_string);
        self.failures.iter().cloned().chain(far_off).collect()
    }

    /// Writes an SVG for each plot.
    pub(crate) fn draw(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        let mut plots = self.sections.iter().flat_map(|section| &section.plots);
        plots.try_for_each(|plot| plot.draw(folder))
    }

    fn goals(&self) -> impl Iterator<Item = &Goal> {
        self.sections.iter().flat_map(|section| &section.goals)
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let sections = self.sections.iter();
        let mut all: Map<String, Value> =
            sections.map(|section| (section.name.to_owned(), section.figures.clone())).collect();
        all.insert("goals".to_owned(), json!(self.goals().collect::<Vec<_>>()));
        all.insert("failures".to_owned(), json!(self.failures));
        all.serialize(serializer)
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "== {}\n{}", self.name, self.table.trim_end())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "== goals")?;
        self.goals().try_for_each(|goal| writeln!(f, "{goal}"))
    }
}

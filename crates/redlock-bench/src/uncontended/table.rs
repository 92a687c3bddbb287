//! One table for each figure: a line for each load, a column for each library.

use std::fmt;

use super::{Figure, REFERENCE, Row, Uncontended};

type Of = fn(&Row) -> Figure;

impl fmt::Display for Uncontended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "medians of {} paired rounds, as ratios to {REFERENCE}; its own figures are in its column",
            self.rounds
        )?;
        let tables: [(&str, Of); 4] = [
            ("cycles per second", |row| row.rate),
            ("p50, µs", |row| row.p50_micros),
            ("CPU of the client, µs per cycle", |row| row.client_cpu_micros),
            ("CPU of the servers, µs per cycle", |row| row.server_cpu_micros),
        ];
        tables.into_iter().try_for_each(|(title, of)| self.table(f, title, of))
    }
}

impl Uncontended {
    fn table(&self, f: &mut fmt::Formatter<'_>, title: &str, of: Of) -> fmt::Result {
        let loads = self.rows.chunk_by(|a, b| (a.nodes, a.tasks) == (b.nodes, b.tasks));
        writeln!(f, "\n{title}")?;
        for (line, load) in loads.enumerate() {
            if line == 0 {
                write!(f, "{:>5} {:>5}", "nodes", "tasks")?;
                load.iter().try_for_each(|row| write!(f, " {:>11}", row.contender))?;
                writeln!(f)?;
            }
            write!(f, "{:>5} {:>5}", load[0].nodes, load[0].tasks)?;
            for row in load {
                let Figure { ratio, absolute } = of(row);
                if row.contender != REFERENCE {
                    write!(f, " {ratio:>10.2}x")?;
                } else if absolute < 100.0 {
                    write!(f, " {absolute:>11.1}")?;
                } else {
                    write!(f, " {absolute:>11.0}")?;
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

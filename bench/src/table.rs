//! Figures by measurement and target; medians and ratios.

use anyhow::{Context, Result};
use std::{collections::BTreeMap, fmt::Write as _};

/// Every round's figure: measurement → unit, target → figures.
#[derive(Default)]
pub struct Table {
    rows: Vec<(String, String)>,
    cells: BTreeMap<(usize, String), Vec<f64>>,
}

/// The middle one; the mean of the two middle ones.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// The `q`-quantile of sorted values.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = ((sorted.len().max(1) - 1) as f64 * q).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

impl Table {
    /// Adds one round's figure.
    pub fn add(&mut self, row: &str, unit: &str, target: &str, value: f64) {
        let at = self.rows.iter().position(|(name, _)| name == row).unwrap_or_else(|| {
            self.rows.push((row.to_owned(), unit.to_owned()));
            self.rows.len() - 1
        });
        self.cells.entry((at, target.to_owned())).or_default().push(value);
    }

    /// The median of a cell.
    pub fn get(&self, row: &str, target: &str) -> Option<f64> {
        let at = self.rows.iter().position(|(name, _)| name == row)?;
        self.cells.get(&(at, target.to_owned())).map(|v| median(&mut v.clone()))
    }

    /// Every figure as a line: measurement, unit, target and value, with tabs between them.
    pub fn figures(&self) -> String {
        let mut text = String::new();
        for ((at, target), values) in &self.cells {
            let (row, unit) = &self.rows[*at];
            for value in values {
                let _ = writeln!(text, "{row}\t{unit}\t{target}\t{value}");
            }
        }
        text
    }

    /// Reads such lines, from wherever they come: several of one measurement and target are its rounds.
    pub fn read(figures: &str) -> Result<Self> {
        let mut table = Self::default();
        for line in figures.lines() {
            let parts: Vec<&str> = line.split('\t').collect();
            let [row, unit, target, value] = parts[..] else { anyhow::bail!("{line:?} is no figure") };
            table.add(row, unit, target, value.parse().with_context(|| line.to_owned())?);
        }
        Ok(table)
    }

    /// How many times better a target is than the one that it is held against: more a second, or less of anything else.
    /// `None`: there is nothing to hold it against, or the measurement counts something.
    fn times(&self, at: usize, target: &str, against: &str) -> Option<f64> {
        let (row, unit) = &self.rows[at];
        let (ours, theirs) = (self.get(row, target)?, self.get(row, against)?);
        match unit.as_str() {
            "" => None,
            "/s" => Some(ours / theirs),
            _ => Some(theirs / ours),
        }
    }

    /// The table as Markdown: medians of each target, and how many times better it is than `against`.
    pub fn ratios(&self, against: &str) -> String {
        let mut targets: Vec<&String> = self.cells.keys().map(|(_, target)| target).filter(|t| *t != against).collect();
        targets.sort();
        targets.dedup();
        let heads: String = targets.iter().map(|target| format!(" {target} | × |")).collect();
        let mut text = format!("| | {against} |{heads}\n|---|---|{}\n", "---|---|".repeat(targets.len()));
        for (at, (row, unit)) in self.rows.iter().enumerate() {
            let shown = |target: &str| match self.get(row, target) {
                Some(value) if value.abs() < 100.0 => format!("{value:.1}"),
                Some(value) => format!("{value:.0}"),
                None => "–".to_owned(),
            };
            let unit = if unit.is_empty() { String::new() } else { format!(", {unit}") };
            let _ = write!(text, "| {row}{unit} | {} |", shown(against));
            for target in &targets {
                let times = self.times(at, target, against).map_or("–".to_owned(), |times| format!("{times:.2}"));
                let _ = write!(text, " {} | {times} |", shown(target));
            }
            text.push('\n');
        }
        text
    }

    /// Prints medians with the spread of the rounds.
    pub fn print(&self, targets: &[String]) {
        let width = self.rows.iter().map(|(n, u)| n.len() + u.len() + 2).max().unwrap_or(10);
        print!("{:width$}", "median (min–max)");
        for target in targets {
            print!("  {target:>26}");
        }
        println!();
        for (at, (row, unit)) in self.rows.iter().enumerate() {
            print!("{:width$}", format!("{row}, {unit}"));
            for target in targets {
                let cell = self.cells.get(&(at, target.clone())).map_or("–".to_owned(), |values| {
                    let mut sorted = values.clone();
                    let middle = median(&mut sorted);
                    let show = |v: f64| if v.abs() < 100.0 { format!("{v:.2}") } else { format!("{v:.0}") };
                    format!("{} ({}–{})", show(middle), show(sorted[0]), show(sorted[sorted.len() - 1]))
                });
                print!("  {cell:>26}");
            }
            println!();
        }
    }

    /// The medians as JSON.
    pub fn json(&self) -> serde_json::Value {
        let mut out = serde_json::Map::new();
        for (at, (row, unit)) in self.rows.iter().enumerate() {
            let cells = self.cells.iter().filter(|((i, _), _)| *i == at);
            let cells: serde_json::Map<_, _> =
                cells.map(|((_, t), v)| (t.clone(), median(&mut v.clone()).into())).collect();
            out.insert(format!("{row}, {unit}"), cells.into());
        }
        out.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_one_is_ahead_whatever_is_measured() {
        let mut table = Table::default();
        for (target, rate, time) in [("kube", 100.0, 50.0), ("kube", 300.0, 30.0), ("hub", 400.0, 10.0)] {
            table.add("create", "/s", target, rate);
            table.add("list", "ms", target, time);
            table.add("lost", "", target, 0.0);
        }
        let again = Table::read(&(table.figures() + "start\tms\thub\t150\n")).unwrap();
        assert_eq!(
            again.ratios("kube"),
            "| | kube | hub | × |\n|---|---|---|---|\n| create, /s | 200 | 400 | 2.00 |\n| list, ms | 40.0 | 10.0 | 4.00 |\n\
             | lost | 0.0 | 0.0 | – |\n| start, ms | – | 150 | – |\n"
        );
        assert!(Table::read("start\tms\thub\n").is_err() && Table::read("a\tms\thub\tsoon\n").is_err());
    }
}

//! Figures by measurement and target; medians and ratios.

use std::collections::BTreeMap;

/// Every round's figure: measurement → unit, target → figures.
#[derive(Default)]
pub struct Table {
    rows: Vec<(String, &'static str)>,
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
    pub fn add(&mut self, row: &str, unit: &'static str, target: &str, value: f64) {
        let at = self.rows.iter().position(|(name, _)| name == row).unwrap_or_else(|| {
            self.rows.push((row.to_owned(), unit));
            self.rows.len() - 1
        });
        self.cells.entry((at, target.to_owned())).or_default().push(value);
    }

    /// The median of a cell.
    pub fn get(&self, row: &str, target: &str) -> Option<f64> {
        let at = self.rows.iter().position(|(name, _)| name == row)?;
        self.cells.get(&(at, target.to_owned())).map(|v| median(&mut v.clone()))
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

//! Lists as kubectl prints them: no borders, a header, three blanks between columns.

use crate::{failure::advise, resource::Resource, text, yaml};
use serde::Deserialize;
use serde_json::Value;

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// The objects as JSON
    Json,
    /// The objects as YAML
    Yaml,
    /// A table with more columns
    Wide,
    /// The names, one a line, such as cluster.moorline.dev/edge1
    Name,
}

/// The flag that chooses it.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct FormArgs {
    /// Form of the answer [default: a table]
    #[arg(short = 'o', long = "output", value_name = "FORM", value_enum)]
    pub form: Option<Form>,
}

/// JSON or YAML, for commands that answer with no list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Data {
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// The flag that chooses it.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct DataArgs {
    /// Answer as data, for programs [default: for people]
    #[arg(short = 'o', long = "output", value_name = "FORM", value_enum)]
    pub form: Option<Data>,
}

/// A value as indented JSON or as YAML, with a line end.
pub fn data(value: &Value, form: Data) -> anyhow::Result<String> {
    Ok(match form {
        Data::Json => format!("{value:#}\n"),
        Data::Yaml => yaml::write(value)?,
    })
}

/// The server's table (`meta.k8s.io/v1 Table`), as far as printing needs it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: Value,
    #[serde(default)]
    column_definitions: Vec<Column>,
    #[serde(default)]
    rows: Vec<Row>,
}

#[derive(Debug, Clone, Deserialize)]
struct Column {
    name: String,
    /// 0: always shown; above: only in the wide form.
    #[serde(default)]
    priority: i64,
}

#[derive(Debug, Clone, Deserialize)]
struct Row {
    #[serde(default)]
    cells: Vec<Value>,
}

impl Table {
    /// Reads the hub's answer.
    pub fn read(answer: Value) -> anyhow::Result<Self> {
        let table: Option<Self> = serde_json::from_value(answer).ok();
        table.filter(|table| table.kind == "Table").ok_or_else(|| {
            advise("the hub sent no table", "hub and moorline are of different versions? see: moorline version")
        })
    }

    /// The revision that a watch goes on from.
    pub fn resource_version(&self) -> Option<&str> {
        self.metadata.get("resourceVersion").and_then(Value::as_str)
    }

    /// No rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// A table of our own making.
    pub fn of(columns: &[&str], rows: Vec<Vec<String>>) -> Self {
        let column = |name: &&str| Column { name: (*name).to_owned(), priority: 0 };
        let row = |cells: Vec<String>| Row { cells: cells.into_iter().map(Value::String).collect() };
        Self {
            column_definitions: columns.iter().map(column).collect(),
            rows: rows.into_iter().map(row).collect(),
            ..Self::default()
        }
    }

    fn lines(&self, wide: bool, header: bool) -> Vec<Vec<String>> {
        let shown: Vec<usize> = (0..self.column_definitions.len())
            .filter(|&i| wide || self.column_definitions.get(i).is_some_and(|c| c.priority == 0))
            .collect();
        let names =
            shown.iter().filter_map(|&i| self.column_definitions.get(i)).map(|c| text::clean(&c.name.to_uppercase()));
        let head = header.then(|| names.collect());
        let rows = self.rows.iter().map(|row| shown.iter().map(|&i| cell(row.cells.get(i))).collect());
        head.into_iter().chain(rows).collect()
    }
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "<none>".into(),
        Some(Value::String(s)) if s.is_empty() => "<none>".into(),
        Some(Value::String(s)) => text::clean(s),
        Some(other) => text::clean(&other.to_string()),
    }
}

/// Prints tables one after the other with columns that stay in line; a watch only ever widens them.
#[derive(Default)]
pub struct Printer {
    widths: Vec<usize>,
    /// The columns of the first table: the later ones of a watch carry none.
    columns: Vec<Column>,
    wide: bool,
}

impl Printer {
    /// With every column, or only those of the first rank.
    pub fn new(wide: bool) -> Self {
        Self { wide, ..Self::default() }
    }

    /// The text of a table; the first has a header.
    pub fn render(&mut self, mut table: Table) -> String {
        let first = self.columns.is_empty();
        if table.column_definitions.is_empty() {
            table.column_definitions = self.columns.clone();
        } else {
            self.columns = table.column_definitions.clone();
        }
        let lines = table.lines(self.wide, first);
        for line in &lines {
            for (i, cell) in line.iter().enumerate() {
                let width = cell.chars().count();
                match self.widths.get_mut(i) {
                    Some(known) => *known = width.max(*known),
                    // kubectl's tab writer starts at six, padding included.
                    None => self.widths.push(width.max(3)),
                }
            }
        }
        lines.iter().map(|line| self.line(line)).collect()
    }

    fn line(&self, cells: &[String]) -> String {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(&self.widths) {
            line.push_str(cell);
            let blanks = width + 3 - cell.chars().count();
            line.extend(std::iter::repeat_n(' ', blanks));
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    }
}

/// The names of an object or of a list, as `-o name` prints them.
pub fn names(resource: Resource, answer: &Value) -> String {
    let one = std::slice::from_ref(answer);
    let items = answer.get("items").and_then(Value::as_array).map_or(one, Vec::as_slice);
    let name = |item: &Value| item.pointer("/metadata/name").and_then(Value::as_str).map(text::clean);
    items.iter().filter_map(name).map(|name| resource.full_name(&name) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn table() -> Table {
        Table::read(json!({
            "kind": "Table", "metadata": {"resourceVersion": "7"},
            "columnDefinitions": [
                {"name": "Name", "type": "string", "priority": 0}, {"name": "RTT", "type": "string", "priority": 0},
                {"name": "Remote", "type": "string", "priority": 1}, {"name": "Age", "type": "string", "priority": 0}],
            "rows": [
                {"cells": ["edge1", "12ms", "192.0.2.1:9", "5d3h"]},
                {"cells": ["a-longer-name", null, "", "1s\u{1b}[2J"]}]}))
        .unwrap()
    }

    #[test]
    fn a_table_is_printed_as_kubectl_does() {
        assert_eq!(
            Printer::new(false).render(table()),
            "NAME            RTT      AGE\nedge1           12ms     5d3h\na-longer-name   <none>   1s\\u{1b}[2J\n"
        );
        let wide = Printer::new(true).render(table());
        assert!(wide.starts_with("NAME            RTT      REMOTE        AGE\n"), "{wide}");
    }

    #[test]
    fn later_tables_of_a_watch_have_no_header_and_keep_the_columns() {
        let mut printer = Printer::new(false);
        printer.render(table());
        let more = json!({"kind": "Table", "columnDefinitions": null, "rows": [{"cells": ["b", "1ms", "x", "0s"]}]});
        let mut more_table = more;
        more_table.as_object_mut().unwrap().remove("columnDefinitions");
        assert_eq!(printer.render(Table::read(more_table).unwrap()), "b               1ms      0s\n");
    }

    #[test]
    fn names_carry_kind_and_group() {
        let list = json!({"items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]});
        assert_eq!(names(Resource::Cluster, &list), "cluster.moorline.dev/a\ncluster.moorline.dev/b\n");
        assert_eq!(names(Resource::User, &json!({"metadata": {"name": "a"}})), "user.moorline.dev/a\n");
    }
}

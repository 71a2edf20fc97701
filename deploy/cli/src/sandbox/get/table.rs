//! Columns of text, as `kubectl` prints them.

use chrono::{DateTime, Utc};

/// Rows under headings.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<S: AsRef<str>>(headings: impl IntoIterator<Item = S>) -> Self {
        Self { rows: vec![headings.into_iter().map(|heading| heading.as_ref().to_owned()).collect()] }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Every column as wide as its widest cell, three spaces between them; empty cells become `-`.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let cell = if cell.is_empty() { "-" } else { cell };
                line.push_str(&format!("{cell:width$}   "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// The time since `from`: two units at most, as `kubectl` has it. Nothing when it is not known.
pub(crate) fn age(from: Option<DateTime<Utc>>, now: DateTime<Utc>) -> String {
    from.map(|from| duration((now - from).num_seconds())).unwrap_or_default()
}

/// A number of seconds for people. Negative ones count as none.
pub(crate) fn duration(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0..2) => format!("{seconds}s"),
        (0, 0, 2..10) if seconds % 60 != 0 => format!("{minutes}m{}s", seconds % 60),
        (0, 0, _) => format!("{minutes}m"),
        (0, 1..8, _) if minutes % 60 != 0 => format!("{hours}h{}m", minutes % 60),
        (0, _, _) => format!("{hours}h"),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["NAME", "AGE"]);
        table.row(vec!["a-long-name".to_owned(), "5s".to_owned()]);
        table.row(vec!["b".to_owned(), String::new()]);
        assert_eq!(table.render(), "NAME          AGE\na-long-name   5s\nb             -\n");
    }

    #[test]
    fn times_are_short() {
        let words = [
            (5, "5s"),
            (119, "119s"),
            (150, "2m30s"),
            (3000, "50m"),
            (3660, "1h1m"),
            (86_400, "1d"),
            (-1, "0s"),
        ];
        for (seconds, word) in words {
            assert_eq!(duration(seconds), word);
        }
    }
}

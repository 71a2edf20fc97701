//! A report for people.

use std::fmt::Write as _;

use crate::finding::Report;

/// A block per finding, and a line that counts them.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let place = &finding.place;
        let _ = write!(text, "{}", place.file.display());
        let _ = match place.line {
            Some(line) => write!(text, ":{line}"),
            None if place.document > 0 => write!(text, ": document {}", place.document),
            None => Ok(()),
        };
        let _ = write!(text, ": {} {}", finding.severity, finding.code);
        for part in [&finding.object, &finding.field].into_iter().filter(|part| !part.is_empty()) {
            let _ = write!(text, ": {part}");
        }
        let _ = writeln!(text, "\n    {}\n    -> {}", finding.what, finding.remedy);
    }
    let counted = counted(report.errors, report.warnings, report.notices);
    let _ = writeln!(text, "{}: {counted}", plural(report.objects, "object"));
    if !report.unread.is_empty() {
        let _ = writeln!(text, "not judged, not read by Culvert: {}", report.unread.join(", "));
    }
    text
}

/// `1 error, 0 warnings, 2 notices`
pub(crate) fn counted(errors: usize, warnings: usize, notices: usize) -> String {
    let counts = [(errors, "error"), (warnings, "warning"), (notices, "notice")];
    counts.map(|(count, word)| plural(count, word)).join(", ")
}

fn plural(count: usize, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

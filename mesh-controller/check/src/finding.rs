//! Findings, and what they add up to.

use std::path::PathBuf;

use serde::Serialize;

use crate::code::{Code, Severity};

/// Where something is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    pub file: PathBuf,
    /// Counted from 1; 0 for the file as a whole.
    pub document: usize,
    /// Counted from 1, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
}

/// One thing that is wrong or surprising.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub code: Code,
    pub severity: Severity,
    #[serde(flatten)]
    pub place: Place,
    /// `KIND NAMESPACE/NAME`, empty where nothing of that can be made out.
    pub object: String,
    /// As `spec.rules[0].backendRefs[1]`, empty for the object as a whole.
    pub field: String,
    /// What is the matter, and what comes of it.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl Finding {
    /// The same, where it is worse or less bad than its code is most of the time.
    pub fn as_bad_as(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }
}

/// Everything that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub errors: usize,
    pub warnings: usize,
    pub notices: usize,
    /// Objects that were looked at.
    pub objects: usize,
    /// `VERSION KIND` of objects that are not Culvert's to judge, each once.
    pub unread: Vec<String>,
    /// By file, document and line.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Sorts the findings and counts them.
    pub(crate) fn of(mut findings: Vec<Finding>, objects: usize, unread: Vec<String>) -> Self {
        findings.sort_by(|a, b| {
            let key = |at: &Finding| (at.place.clone(), at.severity, at.code);
            key(a).cmp(&key(b)).then_with(|| a.field.cmp(&b.field)).then_with(|| a.what.cmp(&b.what))
        });
        findings.dedup();
        let count = |of| findings.iter().filter(|finding| finding.severity == of).count();
        Self {
            errors: count(Severity::Error),
            warnings: count(Severity::Warning),
            notices: count(Severity::Notice),
            objects,
            unread,
            findings,
        }
    }
}

//! Rules between the fields of a BackendTLSPolicy.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Faults, first_of, items, text};

impl Faults<'_> {
    pub(super) fn policy(&mut self, spec: &Value) {
        let validation = &spec["validation"];
        if validation.is_object() {
            self.authorities(validation);
        }
        for (index, name) in items(validation, "subjectAltNames") {
            self.alternative(name, &format!("spec.validation.subjectAltNames[{index}]"));
        }
        self.targets(spec);
    }

    fn authorities(&mut self, validation: &Value) {
        let is_well_known = text(validation, "wellKnownCACertificates").is_some_and(|of| !of.is_empty());
        let has_refs = items(validation, "caCertificateRefs").next().is_some();
        let what = match (is_well_known, has_refs) {
            (true, true) => "both caCertificateRefs and wellKnownCACertificates, expected one of them",
            (false, false) => "neither caCertificateRefs nor wellKnownCACertificates, expected one of them",
            _ => return,
        };
        let remedy = "name the authority's certificates, or write wellKnownCACertificates: System";
        self.tell("spec.validation".to_owned(), what, remedy);
    }

    fn alternative(&mut self, name: &Value, at: &str) {
        let Some(kind) = text(name, "type") else { return };
        for (of, field) in [("Hostname", "hostname"), ("URI", "uri")] {
            let is_there = text(name, field).is_some_and(|value| !value.is_empty());
            match (kind == of, is_there) {
                (true, false) => {
                    self.tell(format!("{at}.{field}"), format!("missing, for type {of}"), "write it")
                }
                (false, true) => {
                    self.tell(format!("{at}.{field}"), format!("it is for type {of}"), "take it away");
                }
                _ => {}
            }
        }
    }

    /// Two references to one object name sections of their own.
    fn targets(&mut self, spec: &Value) {
        let mut whole: BTreeMap<[&str; 3], usize> = BTreeMap::new();
        let mut sections: BTreeMap<([&str; 3], &str), usize> = BTreeMap::new();
        for (index, target) in items(spec, "targetRefs") {
            let of = ["group", "kind", "name"].map(|field| text(target, field).unwrap_or_default());
            let section = text(target, "sectionName").unwrap_or_default();
            let at = format!("spec.targetRefs[{index}]");
            let first = *whole.entry(of).or_insert(index);
            let is_open = section.is_empty() || spec["targetRefs"][first]["sectionName"].is_null();
            if first_of(&mut sections, (of, section), index).is_some() || (first != index && is_open) {
                let what = format!("spec.targetRefs[{first}] is of the same object");
                self.tell(at, what, "name a sectionName of its own in each, or keep one");
            }
        }
    }
}

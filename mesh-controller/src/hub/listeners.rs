//! Which listeners of Gateways are open, as the node proxies report it.

use std::collections::BTreeMap;

use culvert_api::mesh as pb;

use crate::translate::{FactsByUid, Reported};

/// What became of the listeners in each pod of a Gateway: by the uid of its workload, then by the listener's resource.
#[derive(Debug, Default)]
pub struct Listeners {
    workloads: BTreeMap<String, BTreeMap<String, State>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Open,
    Failed(String),
}

impl Listeners {
    /// Takes a node's report. Returns whether anything is different now, and how many lines were about workloads that are not
    /// of that node or no Gateway's.
    pub fn report(&mut self, node: &str, report: pb::ListenerReport, facts: &FactsByUid) -> (bool, usize) {
        let (mut differs, mut ignored) = (false, 0);
        for line in report.workloads {
            let workload = facts.get(&line.uid).map(|facts| &facts.workload);
            if workload.is_none_or(|workload| workload.node != node || workload.gateway.is_empty()) {
                ignored += 1;
                continue;
            }
            let state = |state: pb::ListenerState| match state.failure.is_empty() {
                true => (state.listener, State::Open),
                false => (state.listener, State::Failed(state.failure)),
            };
            let states: BTreeMap<String, State> = line.listeners.into_iter().map(state).collect();
            differs |= self.workloads.get(&line.uid) != Some(&states);
            self.workloads.insert(line.uid, states);
        }
        (differs, ignored)
    }

    /// What is known, as it was reported.
    pub fn reported(&self) -> impl Iterator<Item = pb::WorkloadListeners> {
        let line = |(listener, state): (&String, &State)| pb::ListenerState {
            listener: listener.clone(),
            failure: match state {
                State::Open => String::new(),
                State::Failed(why) => why.clone(),
            },
        };
        self.workloads.iter().map(move |(uid, states)| pb::WorkloadListeners {
            uid: uid.clone(),
            listeners: states.iter().map(line).collect(),
        })
    }

    /// Forgets workloads that are gone.
    pub fn follow(&mut self, facts: &FactsByUid) {
        self.workloads
            .retain(|uid, _| facts.get(uid).is_some_and(|facts| !facts.workload.gateway.is_empty()));
    }

    /// What is known of a listener, by the name of its resource.
    pub fn of(&self, listener: &str) -> Reported {
        let mut reported = Reported::Nothing;
        for state in self.workloads.values().filter_map(|states| states.get(listener)) {
            match state {
                State::Failed(why) => return Reported::Failed(why.clone()),
                State::Open => reported = Reported::Open,
            }
        }
        reported
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translate::Facts;

    fn facts(uids: &[(&str, &str, &str)]) -> FactsByUid {
        let of = |(uid, node, gateway): &(&str, &str, &str)| {
            let workload = pb::Workload {
                uid: (*uid).to_owned(),
                node: (*node).to_owned(),
                gateway: (*gateway).to_owned(),
                ..Default::default()
            };
            ((*uid).to_owned(), Facts { workload, pod: None }.into())
        };
        uids.iter().map(of).collect()
    }

    fn line(uid: &str, failure: &str) -> pb::ListenerReport {
        let state = pb::ListenerState { listener: "a/g/http".to_owned(), failure: failure.to_owned() };
        let listeners = pb::WorkloadListeners { uid: uid.to_owned(), listeners: vec![state] };
        pb::ListenerReport { workloads: vec![listeners] }
    }

    #[test]
    fn a_listener_is_open_when_every_pod_that_was_reported_of_has_it_open() {
        let facts = facts(&[("1", "n", "a/g"), ("2", "m", "a/g"), ("3", "n", "")]);
        let mut listeners = Listeners::default();
        assert_eq!(listeners.report("m", line("1", ""), &facts), (false, 1), "another node's");
        assert_eq!(listeners.report("n", line("3", ""), &facts), (false, 1), "no Gateway's");
        assert_eq!(listeners.of("a/g/http"), Reported::Nothing);
        assert_eq!(listeners.report("n", line("1", ""), &facts), (true, 0));
        assert_eq!(listeners.report("n", line("1", ""), &facts), (false, 0));
        assert_eq!(listeners.of("a/g/http"), Reported::Open);
        listeners.report("m", line("2", "in use"), &facts);
        assert_eq!(listeners.of("a/g/http"), Reported::Failed("in use".to_owned()));
        listeners.follow(&self::facts(&[("1", "n", "a/g")]));
        assert_eq!(listeners.of("a/g/http"), Reported::Open);
        listeners.report(
            "n",
            pb::ListenerReport {
                workloads: vec![pb::WorkloadListeners { uid: "1".into(), listeners: vec![] }],
            },
            &facts,
        );
        assert_eq!(listeners.of("a/g/http"), Reported::Nothing);
    }
}

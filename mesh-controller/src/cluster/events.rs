//! Events on pods that should be in the mesh and are not, for whoever describes such a pod. Told by the leader, not more often
//! than helps.

use std::collections::HashMap;
use std::time::Duration;

use culvert_kubernetes::Client;
use culvert_kubernetes::client::within;
use culvert_kubernetes::lease::Leadership;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::time::Instant;

use crate::hub::enrolment::Missing;
use crate::hub::{Overview, Trouble};

/// How often it is looked who is missing.
const LOOK: Duration = Duration::from_secs(5);
/// A pod may wait this long for what every new pod waits for.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same is told again after this long: an API server forgets Events after an hour.
const AGAIN: Duration = Duration::from_secs(30 * 60);
/// Events per look, at most; the rest has its turn later.
const MOST: usize = 20;
/// Longest note, bytes (the API takes 1,024).
const LONGEST_NOTE: usize = 1_000;
/// What was to be done with the pod.
const ACTION: &str = "Enrol";

/// While this replica leads, tells Events. Never ends.
pub async fn tell(client: Client, replica: &str, mut leadership: Leadership, overview: Overview) {
    let reporter =
        Reporter { controller: crate::CONTROLLER_NAME.to_owned(), instance: Some(replica.to_owned()) };
    let recorder = Recorder::new(client, reporter);
    let mut ledger = Ledger::default();
    let mut said = String::new();
    loop {
        leadership.held().await;
        for trouble in ledger.due(overview.troubles(), Instant::now()) {
            if !leadership.is_held() {
                break;
            }
            match within(recorder.publish(&event(&trouble), &reference(&trouble))).await {
                Ok(()) => ledger.told(&trouble, Instant::now()),
                Err(error) => {
                    let error = error.to_string();
                    if error != said {
                        tracing::warn!(pod = %trouble.pod, error, "an Event cannot be written");
                        said = error;
                    }
                    break;
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What was told, and since when each pod is missing.
#[derive(Debug, Default)]
struct Ledger {
    /// By the pod's uid.
    pods: HashMap<String, Line>,
}

#[derive(Debug)]
struct Line {
    since: Instant,
    told: Option<(Instant, Missing, String)>,
}

impl Ledger {
    /// Of all pods that are missing now, those to tell an Event of; at most [`MOST`].
    fn due(&mut self, troubles: Vec<Trouble>, now: Instant) -> Vec<Trouble> {
        let mut before = std::mem::take(&mut self.pods);
        let mut due = Vec::new();
        for trouble in troubles {
            let line = before.remove(&trouble.uid).unwrap_or(Line { since: now, told: None });
            let is_due = match &line.told {
                None => trouble.missing == Missing::Failed || now >= line.since + PATIENCE,
                Some((at, missing, message)) => {
                    let same = *missing == trouble.missing && *message == trouble.message;
                    now >= *at + if same { AGAIN } else { PATIENCE }
                }
            };
            self.pods.insert(trouble.uid.clone(), line);
            if is_due && due.len() < MOST {
                due.push(trouble);
            }
        }
        due
    }

    fn told(&mut self, trouble: &Trouble, now: Instant) {
        if let Some(line) = self.pods.get_mut(&trouble.uid) {
            line.told = Some((now, trouble.missing, trouble.message.clone()));
        }
    }
}

fn event(trouble: &Trouble) -> Event {
    let reason = match trouble.missing {
        Missing::Failed => "EnrolmentFailed",
        Missing::Waiting | Missing::NotReported => "EnrolmentWaiting",
    };
    let mut note = trouble.message.clone();
    note.truncate(note.floor_char_boundary(LONGEST_NOTE));
    Event {
        type_: EventType::Warning,
        reason: reason.to_owned(),
        note: Some(note),
        action: ACTION.to_owned(),
        secondary: None,
    }
}

fn reference(trouble: &Trouble) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(trouble.pod.name.clone()),
        namespace: trouble.pod.namespace.clone(),
        uid: Some(trouble.uid.clone()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_objects::{Kind, ObjectKey};

    fn trouble(pod: usize, missing: Missing, message: &str) -> Trouble {
        Trouble {
            pod: ObjectKey::namespaced(Kind::Pod, "shop", format!("p{pod}")),
            uid: format!("u{pod}"),
            missing,
            message: message.to_owned(),
        }
    }

    /// What is told at a look, all of it successfully.
    fn look(ledger: &mut Ledger, troubles: &[Trouble], now: Instant) -> Vec<String> {
        let due = ledger.due(troubles.to_vec(), now);
        due.iter().for_each(|trouble| ledger.told(trouble, now));
        due.iter().map(|trouble| format!("{} {}", trouble.pod.name, trouble.message)).collect()
    }

    #[tokio::test]
    async fn who_waits_is_told_of_after_a_while_and_who_fails_at_once_and_once() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let troubles = [trouble(1, Missing::Waiting, "a"), trouble(2, Missing::Failed, "b")];
        assert_eq!(look(&mut ledger, &troubles, start), ["p2 b"]);
        assert!(look(&mut ledger, &troubles, start + PATIENCE - LOOK).is_empty());
        assert_eq!(look(&mut ledger, &troubles, start + PATIENCE), ["p1 a"]);
        assert!(look(&mut ledger, &troubles, start + PATIENCE * 3).is_empty(), "the same is not told again");
        let other = [trouble(1, Missing::Waiting, "a"), trouble(2, Missing::Failed, "c")];
        assert_eq!(look(&mut ledger, &other, start + PATIENCE * 3), ["p2 c"], "another message is");
        let changing = [trouble(1, Missing::Waiting, "a"), trouble(2, Missing::Failed, "d")];
        assert!(look(&mut ledger, &changing, start + PATIENCE * 3 + LOOK).is_empty(), "but not every time");
        assert_eq!(look(&mut ledger, &other, start + PATIENCE * 3 + AGAIN).len(), 2);
        // In the mesh for a moment, and out of it again.
        assert!(look(&mut ledger, &[], start + AGAIN * 2).is_empty());
        assert!(look(&mut ledger, &troubles[..1], start + AGAIN * 2 + LOOK).is_empty());
    }

    #[tokio::test]
    async fn many_have_their_turn_one_after_the_other_and_what_was_not_written_is_told_later() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let troubles: Vec<Trouble> = (0..MOST + 5).map(|pod| trouble(pod, Missing::Failed, "x")).collect();
        assert_eq!(ledger.due(troubles.clone(), start).len(), MOST);
        assert_eq!(look(&mut ledger, &troubles, start).len(), MOST, "none was written the first time");
        assert_eq!(look(&mut ledger, &troubles, start).len(), 5);
        assert!(look(&mut ledger, &troubles, start).is_empty());
    }

    #[test]
    fn a_note_is_cut_where_the_api_has_its_limit() {
        let long = event(&trouble(1, Missing::Failed, &"ä".repeat(900)));
        assert_eq!((long.reason.as_str(), long.note.unwrap().len()), ("EnrolmentFailed", LONGEST_NOTE));
    }
}

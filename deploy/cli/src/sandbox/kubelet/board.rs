//! What is known of one pod, and how it is told in its status.

use chrono::{DateTime, SubsecRound, Utc};
use culvert_objects::ObjectKey;
use culvert_objects::types::{
    Condition, ConditionStatus, Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, PodIp, PodSpec, RestartPolicy,
};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::sandbox::cluster::DualAddress;
use crate::sandbox::store::Store;
use crate::sandbox::supervisor::process::Exit;

/// Which of a pod's lists a container is in, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    Init(usize),
    Main(usize),
}

/// The facts of one pod and the way to its status.
pub struct Board {
    store: Store,
    key: ObjectKey,
    uid: String,
    facts: Mutex<Facts>,
}

/// See [`Board`].
#[derive(Clone, Debug)]
pub struct Facts {
    restart_policy: RestartPolicy,
    host: DualAddress,
    started: DateTime<Utc>,
    addresses: Vec<IpAddr>,
    /// Why nothing may start yet: reason and message.
    held: Option<(String, String)>,
    initialized: bool,
    init: Vec<ContainerStatus>,
    main: Vec<ContainerStatus>,
}

impl Board {
    /// A board for a pod of which nothing is known but its specification.
    #[must_use]
    pub fn new(store: Store, key: ObjectKey, uid: &str, spec: &PodSpec, host: DualAddress) -> Self {
        let waiting = |containers: &[Container], reason: &str| {
            containers.iter().map(|container| waiting_status(container, reason)).collect()
        };
        let reason = if spec.init_containers.is_empty() { "ContainerCreating" } else { "PodInitializing" };
        let facts = Facts {
            restart_policy: spec.restart_policy,
            host,
            started: now(),
            addresses: Vec::new(),
            held: Some(("ContainerCreating".to_owned(), String::new())),
            initialized: spec.init_containers.is_empty(),
            init: waiting(&spec.init_containers, "PodInitializing"),
            main: waiting(&spec.containers, reason),
        };
        Self { store, key, uid: uid.to_owned(), facts: Mutex::new(facts) }
    }

    /// Changes the facts and tells the store.
    pub async fn update(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.facts());
        // A pod of the same name that came after this one is not ours to speak of.
        let same = self.store.objects().get(&self.key).is_some_and(|pod| pod.uid() == self.uid);
        if same {
            // Read again under the store's lock, so that the newest facts win whoever writes last.
            self.store.update_status(&self.key, |status| self.facts().render(status)).await;
        }
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Facts {
    /// Nothing may start yet, and why.
    pub fn hold(&mut self, reason: &str, message: String) {
        self.held = Some((reason.to_owned(), message));
    }

    /// The pod may start at these addresses.
    pub fn release(&mut self, addresses: &[IpAddr]) {
        self.held = None;
        self.addresses = addresses.to_vec();
    }

    /// The init containers are done.
    pub fn set_initialized(&mut self) {
        self.initialized = true;
    }

    pub fn waiting(&mut self, slot: Slot, reason: &str, message: String) {
        let status = self.container(slot);
        if let Some(terminated) = status.state.terminated.take() {
            status.last_state = ContainerState { terminated: Some(terminated), ..ContainerState::default() };
        }
        let waiting = ContainerStateWaiting { reason: reason.to_owned(), message };
        status.state = ContainerState { waiting: Some(waiting), ..ContainerState::default() };
        status.ready = false;
    }

    /// A new process of the container runs.
    pub fn running(&mut self, slot: Slot, id: &str) {
        let again = {
            let status = self.container(slot);
            status.state.terminated.is_some() || status.last_state.terminated.is_some()
        };
        let status = self.container(slot);
        if again {
            status.restart_count += 1;
        }
        let running = ContainerStateRunning { started_at: Some(now()) };
        status.state = ContainerState { running: Some(running), ..ContainerState::default() };
        status.container_id = format!("sandbox://{id}");
        status.started = Some(false);
        status.ready = false;
    }

    pub fn started(&mut self, slot: Slot) {
        self.container(slot).started = Some(true);
    }

    pub fn ready(&mut self, slot: Slot, readiness: Readiness) {
        let status = self.container(slot);
        status.ready = readiness == Readiness::Ready && status.state.running.is_some();
    }

    pub fn terminated(&mut self, slot: Slot, exit: Exit, why: Option<String>) {
        let status = self.container(slot);
        let started_at = status.state.running.take().and_then(|running| running.started_at);
        let reason = match exit.code {
            Some(0) => "Completed",
            _ => "Error",
        };
        let terminated = ContainerStateTerminated {
            exit_code: exit.shell_code(),
            signal: exit.signal,
            reason: why.unwrap_or_else(|| reason.to_owned()),
            started_at,
            finished_at: Some(now()),
        };
        status.state = ContainerState { terminated: Some(terminated), ..ContainerState::default() };
        status.ready = false;
        status.started = Some(false);
    }

    fn container(&mut self, slot: Slot) -> &mut ContainerStatus {
        match slot {
            Slot::Init(index) => &mut self.init[index],
            Slot::Main(index) => &mut self.main[index],
        }
    }

    /// As the kubelet derives it from the containers' states.
    fn phase(&self) -> &'static str {
        let failed = |status: &ContainerStatus| {
            status.state.terminated.as_ref().is_some_and(|terminated| terminated.exit_code != 0)
        };
        if !self.initialized {
            let over = self.restart_policy == RestartPolicy::Never && self.init.iter().any(failed);
            return if over { "Failed" } else { "Pending" };
        }
        if self
            .main
            .iter()
            .any(|status| status.state.waiting.is_some() && status.last_state.terminated.is_none())
        {
            return "Pending";
        }
        let all_ended = self.main.iter().all(|status| status.state.terminated.is_some());
        match (all_ended, self.restart_policy) {
            (false, _) | (true, RestartPolicy::Always) => "Running",
            (true, _) if !self.main.iter().any(failed) => "Succeeded",
            (true, RestartPolicy::Never) => "Failed",
            (true, RestartPolicy::OnFailure) => "Running",
        }
    }

    fn render(&self, status: &mut Value) {
        let phase = self.phase();
        let conditions = self.conditions(phase);
        if !status.is_object() {
            *status = json!({});
        }
        let Some(fields) = status.as_object_mut() else { return };
        let conditions = merged(fields.get("conditions"), conditions);
        let ips: Vec<PodIp> = self.addresses.iter().map(|ip| PodIp { ip: *ip }).collect();
        let values = [
            ("phase", json!(phase)),
            ("hostIP", json!(self.host.v4)),
            ("hostIPs", json!(self.host.both().map(|ip| json!({ "ip": ip })))),
            ("podIP", json!(self.addresses.first())),
            ("podIPs", json!(ips)),
            ("startTime", json!(self.started)),
            ("conditions", conditions),
            ("initContainerStatuses", json!(self.init)),
            ("containerStatuses", json!(self.main)),
        ];
        for (name, value) in values {
            if value.is_null() || value == json!([]) {
                fields.shift_remove(name);
            } else {
                fields.insert(name.to_owned(), value);
            }
        }
    }

    fn conditions(&self, phase: &str) -> Vec<Condition> {
        let over = matches!(phase, "Succeeded" | "Failed");
        let place = match &self.held {
            Some((reason, message)) => condition("PodReadyToStartContainers", Err((reason, message.clone()))),
            None => condition("PodReadyToStartContainers", Ok(())),
        };
        let initialized = if self.initialized {
            Ok(())
        } else {
            Err(("ContainersNotInitialized", unready_names(&self.init, "incomplete")))
        };
        let all_ready = self.held.is_none() && self.main.iter().all(|status| status.ready);
        let ready = || match (all_ready, over) {
            (true, _) => Ok(()),
            (false, true) => Err(("PodCompleted", String::new())),
            (false, false) => Err(("ContainersNotReady", unready_names(&self.main, "unready"))),
        };
        vec![
            place,
            condition("Initialized", initialized),
            condition("ContainersReady", ready()),
            condition("Ready", ready()),
        ]
    }
}

/// Whether a container may be sent traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    NotReady,
}

fn waiting_status(container: &Container, reason: &str) -> ContainerStatus {
    let waiting = ContainerStateWaiting { reason: reason.to_owned(), message: String::new() };
    ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone(),
        image_id: container.image.clone(),
        started: Some(false),
        state: ContainerState { waiting: Some(waiting), ..ContainerState::default() },
        ..ContainerStatus::default()
    }
}

fn unready_names(statuses: &[ContainerStatus], word: &str) -> String {
    let unready = statuses.iter().filter(|status| !status.ready).map(|status| status.name.as_str());
    format!("containers with {word} status: [{}]", unready.collect::<Vec<_>>().join(" "))
}

fn condition(kind: &str, outcome: Result<(), (&str, String)>) -> Condition {
    let (status, reason, message) = match outcome {
        Ok(()) => (ConditionStatus::True, "", String::new()),
        Err((reason, message)) => (ConditionStatus::False, reason, message),
    };
    Condition {
        kind: kind.to_owned(),
        status,
        observed_generation: None,
        last_transition_time: Some(now()),
        reason: reason.to_owned(),
        message,
    }
}

/// Our conditions among those of others; the time moves only when a status flips.
fn merged(before: Option<&Value>, ours: Vec<Condition>) -> Value {
    let mut all = before.and_then(Value::as_array).cloned().unwrap_or_default();
    for mut condition in ours {
        let found = all.iter().position(|other| other["type"] == condition.kind.as_str());
        if let Some(index) = found
            && all[index]["status"] == json!(condition.status)
            && let Ok(time) = serde_json::from_value(all[index]["lastTransitionTime"].clone())
        {
            condition.last_transition_time = time;
        }
        match found {
            Some(index) => all[index] = json!(condition),
            None => all.push(json!(condition)),
        }
    }
    Value::Array(all)
}

fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const EXIT_1: Exit = Exit { code: Some(1), signal: None };
    const EXIT_0: Exit = Exit { code: Some(0), signal: None };

    fn facts(policy: RestartPolicy) -> Facts {
        let container = Container { name: "c".to_owned(), ..Container::default() };
        Facts {
            restart_policy: policy,
            host: DualAddress { v4: Ipv4Addr::LOCALHOST, v6: Ipv6Addr::LOCALHOST },
            started: now(),
            addresses: Vec::new(),
            held: None,
            initialized: true,
            init: Vec::new(),
            main: vec![waiting_status(&container, "ContainerCreating")],
        }
    }

    #[test]
    fn phases_follow_the_kubelet() {
        for (policy, exit, phase) in [
            (RestartPolicy::Always, EXIT_0, "Running"),
            (RestartPolicy::OnFailure, EXIT_0, "Succeeded"),
            (RestartPolicy::OnFailure, EXIT_1, "Running"),
            (RestartPolicy::Never, EXIT_0, "Succeeded"),
            (RestartPolicy::Never, EXIT_1, "Failed"),
        ] {
            let mut facts = facts(policy);
            assert_eq!(facts.phase(), "Pending");
            facts.running(Slot::Main(0), "1");
            assert_eq!(facts.phase(), "Running");
            facts.terminated(Slot::Main(0), exit, None);
            assert_eq!(facts.phase(), phase, "{policy:?} {exit:?}");
        }
    }

    #[test]
    fn restarts_are_counted_and_the_last_end_is_kept() {
        let mut facts = facts(RestartPolicy::Always);
        facts.running(Slot::Main(0), "1");
        facts.terminated(Slot::Main(0), EXIT_1, None);
        facts.waiting(Slot::Main(0), "CrashLoopBackOff", String::new());
        facts.running(Slot::Main(0), "2");
        facts.ready(Slot::Main(0), Readiness::Ready);
        let mut status = json!({"conditions": [{"type": "PodScheduled", "status": "True"}]});
        facts.render(&mut status);
        assert_eq!(status["containerStatuses"][0]["restartCount"], 1);
        assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 1);
        let kinds: Vec<_> =
            status["conditions"].as_array().unwrap().iter().map(|c| c["type"].clone()).collect();
        assert_eq!(
            kinds,
            ["PodScheduled", "PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"]
        );
        assert_eq!(status["conditions"][4]["status"], "True");
    }

    #[test]
    fn a_held_pod_says_why() {
        let mut facts = facts(RestartPolicy::Always);
        facts.hold("WaitingForMesh", "node-proxy: not there".to_owned());
        let mut status = Value::Null;
        facts.render(&mut status);
        assert_eq!(status["conditions"][0]["reason"], "WaitingForMesh");
        assert_eq!(status["conditions"][0]["message"], "node-proxy: not there");
        assert!(status.get("podIP").is_none());
    }
}

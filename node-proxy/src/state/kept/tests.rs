use std::os::unix::fs::PermissionsExt;

use super::super::resources::Resources;
use super::super::snapshot::Origin;
use super::super::testing::{mesh_resource, uid, wire_mesh, wire_workload, workload_resource};
use super::*;

fn state(version: &str) -> Kept {
    let mut resources = Resources::default();
    resources.set_node("one");
    resources.apply(wire::Page {
        upserts: vec![mesh_resource(wire_mesh()), workload_resource(wire_workload("a", &[1]))],
        removals: Vec::new(),
    });
    resources.freeze(Origin::Controller, version).unwrap().1
}

fn written(directory: &Path, kept: &Kept) -> PathBuf {
    let path = directory.join(FILE);
    files::replace(&path, &kept.to_bytes(), Readers::Owner).unwrap();
    path
}

#[test]
fn a_kept_state_is_read_as_it_was_written_and_only_by_its_owner() {
    let directory = tempfile::tempdir().unwrap();
    assert!(load(directory.path()).unwrap().is_none());
    let path = written(directory.path(), &state("v1"));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let kept = load(directory.path()).unwrap().unwrap();
    assert_eq!((kept.version.as_str(), kept.node.as_str()), ("v1", "one"));
    let (snapshot, again) = Resources::restore(&kept).freeze(Origin::Kept, &kept.version).unwrap();
    assert!(snapshot.workload(&uid("a")).is_some());
    assert_eq!(again.to_bytes(), kept.to_bytes());
}

#[test]
fn any_damage_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let path = written(directory.path(), &state("v1"));
    let good = std::fs::read(&path).unwrap();
    for place in (0..good.len()).step_by(7) {
        let mut bad = good.clone();
        bad[place] ^= 0x20;
        std::fs::write(&path, &bad).unwrap();
        let error = load(directory.path()).unwrap_err();
        let expected = if place < MAGIC.len() { "not a kept state" } else { "checksum" };
        assert!(error.to_string().contains(expected), "byte {place}: {error}");
    }
    for length in [0, 5, MAGIC.len(), MAGIC.len() + 10, good.len() - 1] {
        std::fs::write(&path, &good[..length]).unwrap();
        assert!(load(directory.path()).is_err(), "cut to {length}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_one_write_and_the_last_state_is_written_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let (sender, receiver) = watch::channel(Kept::default());
    let cancel = CancellationToken::new();
    let keeper = tokio::spawn(Keeper::new(directory.path(), receiver).run(cancel.clone()));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(load(directory.path()).unwrap().is_none(), "nothing known, nothing written");
    sender.send_replace(state("v1"));
    let version = || load(directory.path()).unwrap().map(|kept| kept.version);
    while version().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    sender.send_replace(state("v2"));
    sender.send_replace(state("v3"));
    cancel.cancel();
    keeper.await.unwrap();
    assert_eq!(version().as_deref(), Some("v3"));
}

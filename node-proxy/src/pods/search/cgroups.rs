//! Which pod a process belongs to, by its control groups. Pure.
//!
//! The kubelet names a pod's group `podUID` (driver `cgroupfs`) or `...-podUID.slice` with the uid's dashes as underscores (driver
//! `systemd`); the lines of `/proc/PID/cgroup` are those of cgroups(7), `HIERARCHY:CONTROLLERS:PATH`, several in version 1.

/// The uids of the pods in whose groups a process is, the innermost first: a node may itself be a pod.
pub fn pods_of(cgroup: &str) -> Vec<String> {
    let mut uids: Vec<String> = Vec::new();
    for path in cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2)) {
        for uid in path.rsplit('/').filter_map(uid) {
            if !uids.contains(&uid) {
                uids.push(uid);
            }
        }
    }
    uids
}

fn uid(group: &str) -> Option<String> {
    let uid = match group.strip_suffix(".slice") {
        // systemd writes the way to a slice with dashes into its name.
        Some(slice) => slice.rsplit('-').next()?.strip_prefix("pod")?.replace('_', "-"),
        None => group.strip_prefix("pod")?.to_owned(),
    };
    let is_uid = !uid.is_empty() && uid.chars().all(|char| char.is_ascii_alphanumeric() || char == '-');
    is_uid.then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::pods_of;

    const UID: &str = "0f5c6a1e-77b2-4c5e-9a51-0d8f0c5b8a11";

    #[test]
    fn both_drivers_and_both_versions_are_read() {
        for cgroup in [
            "0::/kubepods/burstable/pod0f5c6a1e-77b2-4c5e-9a51-0d8f0c5b8a11/3a9f",
            "0::/kubepods/pod0f5c6a1e-77b2-4c5e-9a51-0d8f0c5b8a11/crio-3a9f",
            "0::/kubepods.slice/kubepods-pod0f5c6a1e_77b2_4c5e_9a51_0d8f0c5b8a11.slice/cri-containerd-3a9f.scope",
            "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/\
             kubelet-kubepods-besteffort-pod0f5c6a1e_77b2_4c5e_9a51_0d8f0c5b8a11.slice/crio-3a9f.scope/container",
            // From within a control group namespace.
            "0::/../../kubepods-burstable-pod0f5c6a1e_77b2_4c5e_9a51_0d8f0c5b8a11.slice/cri-containerd-3a9f.scope",
            "9:name=systemd:/kube-n1/kubepods/besteffort/pod0f5c6a1e-77b2-4c5e-9a51-0d8f0c5b8a11/3a9f\n\
             4:memory:/kube-n1/kubepods/besteffort/pod0f5c6a1e-77b2-4c5e-9a51-0d8f0c5b8a11/3a9f\n0::/",
            "5:cpu,cpuacct:/\n2:name=systemd:/kubepods.slice/\
             kubepods-burstable-pod0f5c6a1e_77b2_4c5e_9a51_0d8f0c5b8a11.slice/docker-3a9f.scope\n",
        ] {
            assert_eq!(pods_of(cgroup), [UID], "{cgroup}");
        }
    }

    #[test]
    fn a_node_within_a_pod_is_told_from_its_pods() {
        let nested = "0::/kubepods/pod11111111-aaaa/c0/kubelet.slice/kubelet-pod22222222_bbbb.slice/x.scope";
        assert_eq!(pods_of(nested), ["22222222-bbbb", "11111111-aaaa"]);
    }

    #[test]
    fn what_is_no_pod_is_none() {
        for cgroup in [
            "",
            "0::/",
            "rubbish",
            "0::/system.slice/ssh.service",
            "0::/kubepods/pod",
            "0::/kubepods.slice/kubepods-burstable.slice",
            "0::/user.slice/pod%s",
            "1:2",
        ] {
            assert!(pods_of(cgroup).is_empty(), "{cgroup}");
        }
    }
}

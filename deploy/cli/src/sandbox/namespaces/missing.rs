//! What keeps a kernel from giving an ordinary user namespaces, and how to change it.

use std::fmt;
use std::fs;

/// A setting of the kernel that forbids user namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    MaxUserNamespaces,
    MaxNetNamespaces,
    UnprivilegedClone,
    AppArmor,
}

impl Setting {
    /// Name of the sysctl and the value that allows it.
    #[must_use]
    pub fn sysctl(self) -> (&'static str, &'static str) {
        match self {
            Self::MaxUserNamespaces => ("user.max_user_namespaces", "10000"),
            Self::MaxNetNamespaces => ("user.max_net_namespaces", "10000"),
            Self::UnprivilegedClone => ("kernel.unprivileged_userns_clone", "1"),
            Self::AppArmor => ("kernel.apparmor_restrict_unprivileged_userns", "0"),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, value) = self.sysctl();
        write!(f, "the kernel setting {name} forbids it; allow it with `sudo sysctl -w {name}={value}`")
    }
}

/// The first setting that forbids namespaces to an ordinary user, as the files under `/proc/sys` tell.
#[must_use]
pub fn find() -> Option<Setting> {
    find_with(|name| fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok())
}

fn find_with(read: impl Fn(&str) -> Option<String>) -> Option<Setting> {
    let is = |setting: Setting, forbidding: &str| {
        read(setting.sysctl().0).is_some_and(|value| value.trim() == forbidding)
    };
    if is(Setting::MaxUserNamespaces, "0") {
        Some(Setting::MaxUserNamespaces)
    } else if is(Setting::MaxNetNamespaces, "0") {
        Some(Setting::MaxNetNamespaces)
    } else if is(Setting::UnprivilegedClone, "0") {
        Some(Setting::UnprivilegedClone)
    } else if is(Setting::AppArmor, "1") {
        Some(Setting::AppArmor)
    } else {
        None
    }
}

/// The message for a refused namespace: names the setting at fault where one is known.
#[must_use]
pub fn explain(error: &std::io::Error) -> String {
    match find() {
        Some(setting) => {
            format!("the sandbox needs a user and network namespace of its own ({error}): {setting}")
        }
        None => format!(
            "the sandbox needs namespaces of its own and the kernel refused them ({error}); run it as root, or outside \
             of a container that restricts it (with Docker: --privileged)"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_is_named_with_its_remedy() {
        for (name, value) in [
            ("user.max_user_namespaces", "0\n"),
            ("user.max_net_namespaces", "0"),
            ("kernel.unprivileged_userns_clone", "0\n"),
            ("kernel.apparmor_restrict_unprivileged_userns", "1\n"),
        ] {
            let setting = find_with(|asked| (asked == name).then(|| value.to_owned()));
            let text = setting.map(|setting| setting.to_string()).unwrap_or_default();
            assert!(text.contains(&format!("sysctl -w {name}=")), "{name}: {text}");
        }
        assert_eq!(find_with(|_| Some("63000".to_owned())), None);
    }
}

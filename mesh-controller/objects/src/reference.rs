//! The page `docs/settings.md`, generated from the settings themselves.

use std::fmt::Write as _;

use culvert_api::names::ANNOTATION_PREFIX;

use crate::mesh_config::{SETTINGS, Setting, Settings};

const HEAD: &str = "\
# Settings

<!-- Generated from mesh-controller/objects/src/mesh_config.rs: `UPDATE_GOLDEN=1 cargo test -p culvert-objects`. -->

Settings are read from the `MeshConfig` that the mesh's `XMesh` names in `parametersRef`, else from the one named
`default`, and then from annotations on a namespace and on a pod. The most specific wins, setting by setting. A change
takes effect on running pods. A value that does not parse is reported in the status of the object that has it, and the
last good one stays in force.

```yaml
apiVersion: culvert.dev/v1alpha1
kind: MeshConfig
metadata: {name: default}
spec:
  inboundMode: strict
  excludeOutboundPorts: [22, 8000-8099]
  limits: {connections: 1000, memory: 64Mi}
```

Durations are written as `500ms`, `5s`, `1m30s`; memory as `64Mi` or `1Gi`; lists in annotations with commas.
";

/// The whole page.
pub fn page() -> String {
    let mut page = HEAD.to_owned();
    let (per_workload, mesh_wide): (Vec<_>, Vec<_>) = SETTINGS.iter().partition(|at| at.annotation.is_some());
    section(&mut page, "For a mesh, a namespace or a pod", &per_workload);
    section(&mut page, "For the whole mesh only", &mesh_wide);
    page
}

fn section(page: &mut String, title: &str, settings: &[&Setting]) {
    let defaults = Settings::default();
    let _ = writeln!(page, "\n## {title}");
    for setting in settings {
        let _ = writeln!(page, "\n### `{}`", setting.path);
        for line in setting.doc {
            let _ = writeln!(page, "{}", line.trim());
        }
        let default = match setting.text(&defaults).as_str() {
            "" => "none".to_owned(),
            text => format!("`{text}`"),
        };
        let _ = writeln!(page, "\n- Value: {}\n- Default: {default}", setting.expected);
        if let Some(annotation) = setting.annotation {
            let _ = writeln!(page, "- Annotation: `{ANNOTATION_PREFIX}{annotation}`");
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/settings.md");
        let page = super::page();
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, &page).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), page, "run again with UPDATE_GOLDEN=1");
    }
}

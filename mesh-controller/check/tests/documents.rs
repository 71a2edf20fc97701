//! What is found of documents as such: where they stand, what nobody judges, labels of any kind.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers outside test functions are tests too")]

mod common;

use common::{findings, one, told, with};
use culvert_check::{Absent, Code};

#[test]
fn places_are_those_of_the_text() {
    let text = "# first\nkind: List\napiVersion: v1\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: a}\n  spec:\n    \
                ports:\n    - port: 80\n      prot: TCP\n---\napiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec:\n  ports:\n  \
                - port: 0\n---\nkind: [\n";
    let found = findings(text);
    let places: Vec<(Code, usize, Option<usize>)> =
        found.iter().map(|of| (of.code, of.place.document, of.place.line)).collect();
    assert_eq!(places[0], (Code::UnknownField, 1, Some(11)));
    assert_eq!(places[1], (Code::Schema, 2, Some(18)));
    assert_eq!((places[2].0, places[2].1), (Code::Unreadable, 3));
    assert!(places[2].2.is_some_and(|line| line >= 20), "{places:?}");
}

#[test]
fn values_of_the_label_that_mean_nothing_are_named_wherever_pods_come_from() {
    let on = |kind: &str, value: &str| {
        let labels = format!("labels: {{culvert.dev/mesh: {value}}}");
        let pod = format!("{{metadata: {{{labels}}}, spec: {{containers: [{{name: c, image: i}}]}}}}");
        let (version, rest) = match kind {
            "Deployment" => {
                ("apps/v1", format!("spec: {{selector: {{matchLabels: {{a: b}}}}, template: {pod}}}"))
            }
            "CronJob" => ("batch/v1", format!("spec: {{jobTemplate: {{spec: {{template: {pod}}}}}}}")),
            _ => ("v1", "spec: {containers: [{name: c, image: i}]}".to_owned()),
        };
        let own = if version == "v1" { format!(", {labels}") } else { String::new() };
        told(&format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a{own}}}\n{rest}\n"))
    };
    let label = "labels.culvert.dev/mesh";
    for (kind, value, expected) in [
        ("Namespace", "'true'", Some(format!("CV707 metadata.{label}"))),
        ("Namespace", "Enabled", Some(format!("CV707 metadata.{label}"))),
        ("Namespace", "enabled", None),
        ("Namespace", "disabled", None),
        ("Pod", "on-demand", Some(format!("CV707 metadata.{label}"))),
        ("Pod", "enabled", None),
        ("CronJob", "ambient", Some(format!("CV707 spec.jobTemplate.spec.template.metadata.{label}"))),
        ("CronJob", "disabled", None),
        ("Node", "enabled", Some(format!("CV707 metadata.{label}"))),
        ("Node", "released", None),
    ] {
        let found: Vec<String> = on(kind, value).into_iter().filter(|of| of.starts_with("CV707")).collect();
        assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{kind} {value}");
    }
    assert!(on("Deployment", "ambient").contains(&format!("CV707 spec.template.metadata.{label}")));
}

#[test]
fn only_what_nobody_judged_is_listed_as_not_judged() {
    let text = "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: a}\nrules: []\n---\n\
                apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: {}}\n---\n\
                apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {}\nspec: {}\n---\n{}\n---\n\
                apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: a}\n";
    assert_eq!(with(Absent::There, text).unread, ["apps/v1 StatefulSet"]);
}

#[test]
fn what_is_no_object_in_a_list_is_none_of_those_beside_it() {
    let item = "{apiVersion: v1, kind: Namespace, metadata: {name: b}}";
    let finding = one(&format!("apiVersion: v1\nkind: List\nitems: [{item}, 5]\n"));
    assert_eq!((finding.code, &*finding.object, &*finding.field), (Code::Unreadable, "", "items[1]"));
    let all = findings(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\nkind: a\nkind: b\n---\nkind: c\n",
    );
    let told: Vec<(usize, Option<usize>)> = all.iter().map(|of| (of.place.document, of.place.line)).collect();
    assert_eq!(told, [(2, Some(5)), (3, Some(8))], "{all:#?}");
}

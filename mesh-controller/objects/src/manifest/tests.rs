use super::*;

const TEXT: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {culvert.dev/mesh: enabled}}
---
# nothing here
---
apiVersion: batch/v1
kind: Job
metadata: {name: once}
---
apiVersion: v1
kind: Pod
metadata: {name: a, creationTimestamp: null}
spec: {containers: [{name: c, image: culvert/echo, ports: [{containerPort: 80}]}]}
status: {}
";

#[test]
fn documents_become_objects_or_are_skipped() {
    let manifest = parse(TEXT, Path::new("shop.yaml")).into_result().unwrap();
    let keys: Vec<String> = manifest.objects.iter().map(|at| at.object.key().to_string()).collect();
    assert_eq!(keys, ["Namespace shop", "Pod default/a"]);
    assert_eq!(manifest.objects[1].document, 4);
    assert_eq!(
        manifest.skipped[0].to_string(),
        "shop.yaml: document 3 (once): skipped: kind \"Job\" is not supported"
    );
}

#[test]
fn every_error_names_file_document_field_and_expectation() {
    let text = TEXT.replace("containerPort: 80", "containerPort: 0").replace("name: shop", "name: SHOP");
    let errors = parse(&text, Path::new("shop.yaml")).into_result().unwrap_err();
    let lines: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines[0].starts_with("shop.yaml: document 1 (Namespace SHOP): metadata.name: invalid value"));
    assert_eq!(
        lines[1],
        "shop.yaml: document 4 (Pod default/a): spec.containers[0].ports[0].containerPort: \
         invalid value: integer `0`, expected a port from 1 to 65535"
    );
}

#[test]
fn lists_json_and_duplicate_keys() {
    let list = r#"{"kind":"List","apiVersion":"v1","items":[{"apiVersion":"v1","kind":"ServiceAccount",
        "metadata":{"name":"a"}}]} {"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b"},"data":{"k":1}}"#;
    let manifest = parse(list, Path::new("x.json"));
    assert_eq!(manifest.objects.len(), 1);
    assert_eq!(manifest.errors[0].field, "data.k");
    let twice = parse("apiVersion: v1\nkind: Node\nkind: Pod\n", Path::new("x.yaml"));
    assert!(twice.errors[0].message.contains("duplicate"), "{}", twice.errors[0]);
}

#[test]
fn what_has_items_is_a_list_and_they_may_leave_out_what_it_says() {
    let item = "{metadata: {name: a}}";
    let kinds = |text: &str| -> Vec<String> {
        let read = parse(text, Path::new("x.yaml")).into_result().unwrap();
        read.objects.iter().map(|at| at.object.key().to_string()).collect()
    };
    let list = format!("apiVersion: v1\nkind: NamespaceList\nitems: [{item}]\n");
    assert_eq!(kinds(&list), ["Namespace a"]);
    assert_eq!(kinds(&list.replace(&format!("[{item}]"), "[]")), [""; 0]);
    let other = list.replace(item, "{apiVersion: v1, kind: Node, metadata: {name: a}}");
    assert_eq!(kinds(&other), ["Node a"]);
    let wrong = parse("apiVersion: v1\nkind: List\nitems: [5]\n", Path::new("x.yaml"));
    assert_eq!(wrong.errors[0].field, "items[0]");
}

#[test]
fn a_document_that_cannot_be_read_does_not_take_the_others_with_it() {
    let node = |name: &str| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n");
    for wrong in ["kind: A\nkind: B\n", "a: *nobody\n", "a: [1\n", "a: 'b\n", "a: b: c\n"] {
        let text = format!("# first\n---\n{}---\n{wrong}--- # next\n{}", node("a"), node("b"));
        let manifest = parse(&text, Path::new("x.yaml"));
        let names: Vec<(&str, usize)> =
            manifest.objects.iter().map(|at| (at.object.name(), at.document)).collect();
        assert_eq!(names, [("a", 1), ("b", 3)], "{wrong}");
        assert_eq!(manifest.errors.len(), 1, "{wrong}");
        assert_eq!(manifest.errors[0].document, 2, "{wrong}");
    }
    // Lines are those of the text.
    let manifest = parse(&format!("{}---\nkind: A\nkind: B\n", node("a")), Path::new("x.yaml"));
    assert!(manifest.errors[0].message.contains("line 5"), "{}", manifest.errors[0]);
}

#[test]
fn a_key_of_json_is_written_once() {
    let text = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"a","name":"b"}}"#;
    let manifest = parse(text, Path::new("x.json"));
    assert!(manifest.errors[0].message.contains("duplicate"), "{}", manifest.errors[0]);
    assert_eq!(parse(&text.replace(r#","name":"b""#, ""), Path::new("x.json")).objects.len(), 1);
}

/// Without a bound this takes minutes.
#[test]
fn what_nests_too_deep_is_refused_before_it_is_read() {
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
    let many = |text: &str| text.repeat(200_000);
    for deep in
        [many("["), format!("a:\n  - {}", many("{a: ")), format!("{namespace}---\nx: {}", many("[{a: "))]
    {
        let manifest = parse(&deep, Path::new("deep.yaml"));
        let said = manifest.errors[0].to_string();
        assert!(said.starts_with("deep.yaml: document 1: has more than 128 lists"), "{said}");
    }
    // Much, and not deep.
    let wide = format!("{namespace}spec: [{}[]]\n# {}\n", many("[], "), many("["));
    assert_eq!(parse(&wide, Path::new("wide.yaml")).errors, []);
}

#[test]
fn a_directory_is_read_in_order_without_hidden_files() {
    let directory = tempfile::tempdir().unwrap();
    let node = |name: &str| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n");
    for (path, name) in [("b.yaml", "b"), ("a/z.yml", "z"), (".hidden.yaml", "h"), ("note.txt", "t")] {
        let path = directory.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, node(name)).unwrap();
    }
    let manifest = load(directory.path()).into_result().unwrap();
    let names: Vec<&str> = manifest.objects.iter().map(|at| at.object.name()).collect();
    assert_eq!(names, ["z", "b"]);
    assert!(load(Path::new("does/not/exist.yaml")).into_result().is_err());
    // A link to itself, and a second way to what is there.
    std::os::unix::fs::symlink(directory.path(), directory.path().join("again")).unwrap();
    std::os::unix::fs::symlink(directory.path().join("a"), directory.path().join("c")).unwrap();
    assert_eq!(load(directory.path()).into_result().unwrap().objects.len(), 2);
}

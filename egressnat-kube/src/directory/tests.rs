use super::*;
use crate::store::WatchEvent;
use std::time::Duration;

fn store() -> (tempfile::TempDir, DirectoryStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path().join("objects")).unwrap();
    (directory, store)
}

fn gateway(addresses: &[&str]) -> Object {
    let key = ObjectKey::namespaced(Kind::NetworkGatewayGroup, "kube-system", "default");
    Object::new(&key, json!({ "spec": { "floatingIPs": addresses } }))
}

async fn next(watch: &mut Watch) -> WatchEvent {
    tokio::time::timeout(Duration::from_secs(10), watch.next())
        .await
        .expect("an event in time")
        .expect("a live store")
}

#[test]
fn applying_twice_changes_nothing() {
    let (_directory, store) = store();
    assert_eq!(
        store.apply(gateway(&["192.168.1.100"])).unwrap(),
        Applied::Created
    );
    let first = store.get(gateway(&[]).key()).unwrap();
    assert_eq!(
        store.apply(gateway(&["192.168.1.100"])).unwrap(),
        Applied::Unchanged
    );
    assert_eq!(store.get(gateway(&[]).key()).unwrap(), first);
    assert_eq!(
        store.apply(gateway(&["192.168.1.101"])).unwrap(),
        Applied::Changed
    );
    assert_eq!(
        store
            .get(gateway(&[]).key())
            .unwrap()
            .unwrap()
            .at("/metadata/generation"),
        &json!(2)
    );
}

#[tokio::test]
async fn of_two_writers_with_one_version_one_is_refused() {
    let (_directory, store) = store();
    let other = DirectoryStore::open(store.directory()).unwrap();
    let read = store.create(gateway(&["192.168.1.100"])).await.unwrap();
    let mut second = read.clone();
    second.value_mut()["spec"]["floatingIPs"] = json!(["192.168.1.102"]);
    store.update(read.clone()).await.unwrap();
    assert!(matches!(
        other.update(second.clone()).await,
        Err(StoreError::Conflict(_))
    ));
    // Whoever writes the status is not in the way, and is not told of the change of the rest.
    let mut status = read;
    status.value_mut()["status"] = json!({ "nodes": { "worker1": "Up" } });
    other.update_status(status.clone()).await.unwrap();
    assert!(matches!(
        store.update_status(status_with(&status, "Down")).await,
        Err(StoreError::Conflict(_))
    ));
    assert_eq!(
        store
            .get(second.key())
            .unwrap()
            .unwrap()
            .at("/status/nodes/worker1"),
        &json!("Up")
    );
}

fn status_with(object: &Object, health: &str) -> Object {
    let mut object = object.clone();
    object.value_mut()["status"] = json!({ "nodes": { "worker1": health } });
    object
}

#[test]
fn a_manifest_does_not_overwrite_the_status() {
    let (_directory, store) = store();
    store.apply(gateway(&["192.168.1.100"])).unwrap();
    let object = store.get(gateway(&[]).key()).unwrap().unwrap();
    store.set_status(status_with(&object, "Up")).unwrap();
    store
        .apply(status_with(&gateway(&["192.168.1.101"]), "Down"))
        .unwrap();
    assert_eq!(
        store
            .get(gateway(&[]).key())
            .unwrap()
            .unwrap()
            .at("/status/nodes/worker1"),
        &json!("Up")
    );
}

#[tokio::test]
async fn a_watch_sees_what_comes_changes_goes_and_cannot_be_read() {
    let (_directory, store) = store();
    store.apply(gateway(&["192.168.1.100"])).unwrap();
    let mut watch = store
        .watch(&crate::store::WatchRequest::of(&[
            Kind::NetworkGatewayGroup,
        ]))
        .unwrap();
    assert!(matches!(next(&mut watch).await, WatchEvent::Applied(_)));
    assert_eq!(next(&mut watch).await, WatchEvent::Synced);

    store.apply(gateway(&["192.168.1.101"])).unwrap();
    let WatchEvent::Applied(object) = next(&mut watch).await else {
        panic!("then the change")
    };
    assert_eq!(object.at("/spec/floatingIPs/0"), &json!("192.168.1.101"));

    fs::write(store.directory().join("mine.yaml"), "kind: [").unwrap();
    assert!(matches!(
        next(&mut watch).await,
        WatchEvent::Failed(ManifestError::Yaml { .. })
    ));

    store.delete(gateway(&[]).key()).unwrap();
    assert_eq!(
        next(&mut watch).await,
        WatchEvent::Deleted(gateway(&[]).key().clone())
    );
}

#[test]
fn a_hand_written_file_is_read_and_never_changed() {
    let (_directory, store) = store();
    let path = store.directory().join("mine.yaml");
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: alice}\n---\n\
                apiVersion: v1\nkind: Namespace\nmetadata: {name: paul, labels: {user: paul}}\n";
    fs::write(&path, text).unwrap();
    let names: Vec<String> = store
        .list(Kind::Namespace)
        .unwrap()
        .iter()
        .map(|o| o.name().to_owned())
        .collect();
    assert_eq!(names, ["alice", "paul"]);
    let changed = Object::new(
        &ObjectKey::cluster(Kind::Namespace, "alice"),
        json!({ "x": 1 }),
    );
    let error = store.apply(changed).unwrap_err();
    assert!(error.to_string().contains("mine.yaml"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn an_object_that_makes_no_sense_is_refused() {
    let (_directory, store) = store();
    let error = store.apply(gateway(&["192.168.1.300"])).unwrap_err();
    assert!(error.to_string().contains("spec.floatingIPs[0]"), "{error}");
    assert_eq!(store.list(Kind::NetworkGatewayGroup).unwrap(), []);
}

#[test]
fn while_a_file_is_broken_what_it_held_stays() {
    let (_directory, store) = store();
    let path = store.directory().join("mine.yaml");
    fs::write(
        &path,
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: alice}\n",
    )
    .unwrap();
    assert_eq!(store.list(Kind::Namespace).unwrap().len(), 1);
    fs::write(&path, "apiVersion: v1\nkind: Name").unwrap();
    assert_eq!(store.list(Kind::Namespace).unwrap().len(), 1);
    assert_eq!(store.errors().len(), 1);
    fs::write(&path, "").unwrap();
    assert_eq!(store.list(Kind::Namespace).unwrap().len(), 0);
}

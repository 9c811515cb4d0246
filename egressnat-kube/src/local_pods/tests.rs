use std::time::Duration;

use super::*;
use crate::directory::DirectoryStore;

fn key(name: &str) -> PodKey {
    PodKey::new("alice".parse().unwrap(), name.parse().unwrap())
}

fn pod(address: &str) -> Pod {
    let mut pod = Pod::new("worker1".parse().unwrap());
    pod.ips.insert(address.parse().unwrap());
    pod.labels.insert("role".to_owned(), "frontend".to_owned());
    pod
}

async fn next(watch: &mut Watch) -> WatchEvent {
    let next = tokio::time::timeout(Duration::from_secs(20), watch.next());
    next.await.expect("in time").expect("the store is there")
}

fn request() -> WatchRequest {
    WatchRequest::of(&[Kind::Namespace, Kind::Pod]).of_node("worker1".parse().unwrap())
}

#[test]
fn a_pod_means_what_it_meant() {
    let mut wanted = pod("10.10.1.2");
    wanted.host_network = true;
    wanted.phase = PodPhase::Finished;
    let object = object_of(&key("frontend-0"), &wanted);
    let read = crate::resource::pod_of(&object).unwrap();
    assert_eq!(read, Some(wanted));
}

#[tokio::test]
async fn pods_are_told_with_the_objects_and_then_as_they_come_and_go() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path()).unwrap();
    // One in the store is none of this node's.
    store
        .apply(object_of(&key("stranger"), &pod("10.10.1.9")))
        .unwrap();
    let pods = LocalPods::default();
    pods.put(&key("frontend-0"), &pod("10.10.1.2"));
    let mut watch = pods.beside(store).watch(&request()).unwrap();
    let told = object_of(&key("frontend-0"), &pod("10.10.1.2"));
    assert_eq!(next(&mut watch).await, WatchEvent::Applied(told));
    assert_eq!(next(&mut watch).await, WatchEvent::Synced);

    // The same name, another address.
    pods.put(&key("frontend-0"), &pod("10.10.1.3"));
    let moved = object_of(&key("frontend-0"), &pod("10.10.1.3"));
    assert_eq!(next(&mut watch).await, WatchEvent::Applied(moved));
    pods.put(&key("frontend-0"), &pod("10.10.1.3"));
    assert!(pods.remove(&key("frontend-0")));
    assert!(!pods.remove(&key("frontend-0")));
    let gone = WatchEvent::Deleted(object_key(&key("frontend-0")));
    assert_eq!(
        next(&mut watch).await,
        gone,
        "what is as it was is not told"
    );
}

#[tokio::test]
async fn who_does_not_ask_for_pods_is_told_of_none() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path()).unwrap();
    let pods = LocalPods::default();
    pods.put(&key("frontend-0"), &pod("10.10.1.2"));
    let request = WatchRequest::of(&[Kind::Namespace]);
    let mut watch = pods.beside(store).watch(&request).unwrap();
    assert_eq!(next(&mut watch).await, WatchEvent::Synced);
}

#[tokio::test]
async fn a_watch_that_was_dropped_is_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path()).unwrap();
    let pods = LocalPods::default();
    drop(pods.beside(store).watch(&request()).unwrap());
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let mut address = 0u8;
    while !pods.state().watches.is_empty() {
        assert!(tokio::time::Instant::now() < deadline);
        address = address.wrapping_add(1);
        pods.put(&key("frontend-0"), &pod(&format!("10.10.1.{address}")));
        tokio::task::yield_now().await;
    }
}

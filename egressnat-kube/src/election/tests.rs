use super::*;
use crate::directory::DirectoryStore;

fn election(identity: &str, duration: Duration) -> Election {
    Election {
        identity: identity.to_owned(),
        duration,
    }
}

async fn until(what: &str, mut probe: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !probe() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "timed out waiting for {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A group that the store has.
fn group(store: &DirectoryStore) -> Object {
    let key = ObjectKey::namespaced(Kind::NetworkGatewayGroup, SYSTEM_NAMESPACE, "default");
    let object = Object::new(&key, json!({"spec": {"floatingIPs": []}}));
    store.apply(object).unwrap();
    store.get(&key).unwrap().unwrap()
}

#[tokio::test]
async fn one_leads_and_another_takes_over_when_it_has_gone() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path()).unwrap();
    let duration = Duration::from_millis(500);
    let (first, task) = start(store.clone(), election("first", duration));
    until("a leader", || first.remaining().is_some()).await;
    let (second, other) = start(store.clone(), election("second", duration));
    drop(task);
    until("the other to lead", || {
        let (old, new) = (first.remaining(), second.remaining());
        assert!(
            old.is_none() || new.is_none(),
            "both lead: {old:?}, {new:?}"
        );
        new.is_some()
    })
    .await;
    let lease = store.get(&lease_key()).unwrap().unwrap();
    assert_eq!(lease.at("/spec/holderIdentity"), "second");
    assert_eq!(lease.at("/spec/leaseTransitions"), 1);
    drop(other);
}

#[tokio::test]
async fn who_resigns_makes_nobody_wait() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path()).unwrap();
    let long = Duration::from_secs(60);
    let (first, candidacy) = start(store.clone(), election("first", long));
    until("a leader", || first.remaining().is_some()).await;
    candidacy.resign().await;
    assert_eq!(first.remaining(), None);
    let (second, _candidacy) = start(store.clone(), election("second", long));
    until("the next leader", || second.remaining().is_some()).await;
}

#[tokio::test]
async fn who_finds_another_name_in_the_lease_leads_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path()).unwrap();
    let (first, task) = start(store.clone(), election("first", Duration::from_secs(10)));
    until("a leader", || first.remaining().is_some()).await;
    until("another name in the lease", || {
        let mut lease = store.get(&lease_key()).unwrap().unwrap();
        lease.value_mut()["spec"]["holderIdentity"] = json!("other");
        store.apply(lease).is_ok()
    })
    .await;
    until("the end of its lead", || first.remaining().is_none()).await;
    drop(task);
}

#[tokio::test]
async fn only_who_leads_writes() {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path()).unwrap();
    let (sender, receiver) = watch::channel(None);
    let led = Led {
        store: store.clone(),
        leadership: Leadership::Elected(receiver),
    };
    let mut object = group(&store);
    object.value_mut()["status"] = json!({"nodes": {}});
    let refused = led.update_status(object.clone()).await;
    assert!(
        matches!(refused, Err(StoreError::NotLeading(_))),
        "{refused:?}"
    );
    sender
        .send(Some(now().after(Duration::from_secs(60))))
        .unwrap();
    led.update_status(object.clone()).await.unwrap();
    sender.send(Some(now())).unwrap();
    let refused = led.remove(object.key()).await;
    assert!(
        matches!(refused, Err(StoreError::NotLeading(_))),
        "{refused:?}"
    );
    assert!(led.read(object.key()).await.unwrap().is_some());
}

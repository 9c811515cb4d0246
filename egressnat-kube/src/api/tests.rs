use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;
use crate::kind::Kind;
use crate::store::WatchEvent;

mod fake;

use fake::Answer;

fn group(name: &str, version: u64) -> Value {
    json!({
        "apiVersion": "networking.gke.io/v1", "kind": "NetworkGatewayGroup",
        "metadata": {"name": name, "namespace": "kube-system", "resourceVersion": version.to_string()},
        "spec": {"floatingIPs": []},
    })
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::namespaced(Kind::NetworkGatewayGroup, "kube-system", name)
}

fn list(version: u64, items: &[Value]) -> Answer {
    Answer::json(&json!({"metadata": {"resourceVersion": version.to_string()}, "items": items}))
}

fn groups() -> WatchRequest {
    WatchRequest::of(&[Kind::NetworkGatewayGroup])
}

fn is_watch(request: &str) -> bool {
    request.contains("watch=true")
}

/// The next event in short: what happened, and to whom in which version.
async fn told(watch: &mut Watch) -> String {
    let short = |object: &Object| {
        format!(
            "{}@{}",
            object.name(),
            object.resource_version().unwrap_or("-")
        )
    };
    let event = tokio::time::timeout(Duration::from_secs(20), watch.next());
    match event.await.expect("an event").expect("the watch goes on") {
        WatchEvent::Applied(object) => format!("applied {}", short(&object)),
        WatchEvent::Deleted(key) => format!("deleted {}", key.name),
        event => format!("{event:?}"),
    }
}

#[tokio::test]
async fn a_watch_whose_history_is_gone_goes_on_with_the_difference() {
    let event = json!({"type": "ERROR", "object": {
        "kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old",
    }});
    let in_an_event = Answer::lines(&[event]);
    // Told in the answer to the watch, or in an event of it.
    for is_event in [false, true] {
        let in_an_event = in_an_event.clone();
        let way = move || match is_event {
            false => Answer::failure(410, "Expired"),
            true => Answer::Whole(200, in_an_event.clone()),
        };
        let (store, _) = fake::store(move |requests| {
            let lists = requests.iter().filter(|request| !is_watch(request)).count();
            let last = requests.last().unwrap();
            match (is_watch(last), lists) {
                (false, 1) => list(10, &[group("a", 1), group("b", 2), group("c", 3)]),
                (false, _) => list(20, &[group("a", 1), group("b", 11), group("d", 12)]),
                (true, _) if last.contains("resourceVersion=10") => way(),
                (true, _) => Answer::Open(Answer::lines(&[
                    json!({"type": "MODIFIED", "object": group("d", 21)}),
                ])),
            }
        });
        let mut watch = store.watch(&groups()).unwrap();
        assert_eq!(told(&mut watch).await, "applied a@1");
        for want in [
            "applied b@2",
            "applied c@3",
            "Synced",
            "applied b@11",
            "applied d@12",
            "deleted c",
            "applied d@21",
        ] {
            assert_eq!(told(&mut watch).await, want);
        }
    }
}

#[tokio::test]
async fn an_outage_is_told_and_makes_no_object_disappear() {
    let (store, _) = fake::store(|requests| {
        let last = requests.last().unwrap();
        let failures = requests.iter().filter(|request| is_watch(request)).count();
        match (is_watch(last), failures) {
            (false, _) => list(10, &[group("a", 1)]),
            (true, 1) => Answer::Whole(200, String::new()),
            (true, 2..=4) => Answer::failure(503, "ServiceUnavailable"),
            (true, _) => Answer::Open(Answer::lines(&[
                json!({"type": "ADDED", "object": group("b", 11)}),
            ])),
        }
    });
    let mut watch = store.watch(&groups()).unwrap();
    for want in [
        "applied a@1",
        "Synced",
        "Interrupted",
        "Resumed",
        "applied b@11",
    ] {
        assert_eq!(told(&mut watch).await, want);
    }
}

#[tokio::test]
async fn a_watch_goes_on_after_the_last_event_or_bookmark() {
    let (store, requests) = fake::store(|requests| {
        let last = requests.last().unwrap();
        let watches = requests.iter().filter(|request| is_watch(request)).count();
        match (is_watch(last), watches) {
            (false, _) => list(10, &[]),
            (true, 1) => Answer::Whole(
                200,
                Answer::lines(&[
                    json!({"type": "ADDED", "object": group("a", 11)}),
                    json!({"type": "BOOKMARK", "object": {
                        "kind": "NetworkGatewayGroup", "apiVersion": "networking.gke.io/v1", "metadata": {"resourceVersion": "15"},
                    }}),
                ]),
            ),
            (true, _) => Answer::Open(Answer::lines(&[
                json!({"type": "DELETED", "object": group("a", 16)}),
            ])),
        }
    });
    let mut watch = store.watch(&groups()).unwrap();
    for want in ["Synced", "applied a@11", "deleted a"] {
        assert_eq!(told(&mut watch).await, want);
    }
    let requests = requests.lock().unwrap();
    let watches: Vec<&String> = requests
        .iter()
        .filter(|request| is_watch(request))
        .collect();
    assert!(watches[0].contains("resourceVersion=10"), "{watches:?}");
    assert!(watches[1].contains("resourceVersion=15"), "{watches:?}");
}

#[tokio::test]
async fn a_watch_of_which_nothing_is_heard_is_begun_anew_and_that_is_no_outage() {
    let (store, _) = fake::store(|requests| {
        let last = requests.last().unwrap();
        let watches = requests.iter().filter(|request| is_watch(request)).count();
        let added = |name, version| json!({"type": "ADDED", "object": group(name, version)});
        match (is_watch(last), watches) {
            (false, _) => list(10, &[]),
            (true, 1) => Answer::Open(Answer::lines(&[added("a", 11)])),
            (true, _) => Answer::Open(Answer::lines(&[added("b", 12)])),
        }
    });
    let mut watch = store.watch(&groups()).unwrap();
    for want in ["Synced", "applied a@11"] {
        assert_eq!(told(&mut watch).await, want);
    }
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(100)).await;
    tokio::time::resume();
    assert_eq!(told(&mut watch).await, "applied b@12");
}

#[tokio::test]
async fn a_kind_that_is_not_defined_yet_is_waited_for() {
    let (store, _) = fake::store(|requests| match requests.len() {
        1..=3 => Answer::Whole(404, "404 page not found".to_owned()),
        4 => list(10, &[group("a", 1)]),
        _ => Answer::Open(String::new()),
    });
    let mut watch = store.watch(&groups()).unwrap();
    assert_eq!(told(&mut watch).await, "applied a@1");
}

#[tokio::test]
async fn watches_that_end_at_once_come_ever_more_slowly() {
    let (store, requests) = fake::store(|requests| {
        if is_watch(requests.last().unwrap()) {
            Answer::Whole(200, String::new())
        } else {
            list(10, &[])
        }
    });
    let start = Instant::now();
    let _watch = store.watch(&groups()).unwrap();
    while requests.lock().unwrap().len() < 6 {
        assert!(start.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // At least half of 100, 200, 400 and 800 ms.
    assert!(
        start.elapsed() >= Duration::from_millis(750),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn long_lists_come_in_pages_and_pods_of_one_node_only() {
    let pod = |name: &str| json!({"metadata": {"name": name, "namespace": "alice"}});
    let (store, requests) = fake::store(move |requests| match requests.last().unwrap() {
        request if is_watch(request) => Answer::Open(String::new()),
        request if request.contains("continue=next") => list(10, &[pod("b")]),
        _ => Answer::json(
            &json!({"metadata": {"resourceVersion": "10", "continue": "next"}, "items": [pod("a")]}),
        ),
    });
    let request = WatchRequest::of(&[Kind::Pod]).of_node("worker1".parse().unwrap());
    let mut watch = store.watch(&request).unwrap();
    for want in ["applied a@-", "applied b@-", "Synced"] {
        assert_eq!(told(&mut watch).await, want);
    }
    for request in requests.lock().unwrap().iter() {
        assert!(
            request.contains("fieldSelector=spec.nodeName%3Dworker1"),
            "{request}"
        );
    }
}

#[tokio::test]
async fn a_list_that_expires_between_two_pages_begins_anew_and_is_told_once() {
    let (store, _) = fake::store(move |requests| {
        let lists = requests.iter().filter(|request| !is_watch(request)).count();
        match requests.last().unwrap() {
            request if is_watch(request) => Answer::Open(String::new()),
            request if request.contains("continue=old") => Answer::failure(410, "Expired"),
            _ if lists == 1 => Answer::json(&json!({
                "metadata": {"resourceVersion": "10", "continue": "old"}, "items": [group("a", 1), group("b", 2)],
            })),
            _ => list(20, &[group("b", 2), group("c", 12)]),
        }
    });
    let mut watch = store.watch(&groups()).unwrap();
    for want in [
        "applied a@1",
        "applied b@2",
        "applied c@12",
        "deleted a",
        "Synced",
    ] {
        assert_eq!(told(&mut watch).await, want);
    }
}

#[tokio::test]
async fn of_gateway_nodes_only_the_own_one_is_asked_for() {
    let (store, requests) = fake::store(move |requests| match requests.last().unwrap() {
        request if is_watch(request) => Answer::Open(String::new()),
        _ => list(10, &[]),
    });
    let request = WatchRequest::of(&[Kind::NetworkGatewayNode]).of_node("worker1".parse().unwrap());
    let mut watch = store.watch(&request).unwrap();
    assert_eq!(told(&mut watch).await, "Synced");
    for request in requests.lock().unwrap().iter() {
        assert!(
            request.contains("fieldSelector=metadata.name%3Dworker1"),
            "{request}"
        );
    }
}

#[tokio::test]
async fn failures_are_told_in_the_words_of_the_port() {
    struct Case {
        answer: (u16, &'static str),
        want: &'static str,
    }
    let cases = [
        Case {
            answer: (409, "Conflict"),
            want: "was changed by somebody else meanwhile",
        },
        Case {
            answer: (409, "AlreadyExists"),
            want: "NetworkGatewayGroup kube-system/a exists already",
        },
        Case {
            answer: (404, "NotFound"),
            want: "NetworkGatewayGroup kube-system/a does not exist",
        },
        Case {
            answer: (403, "Forbidden"),
            want: "could not change NetworkGatewayGroup kube-system/a: Forbidden",
        },
        Case {
            answer: (422, "Invalid"),
            want: "could not change NetworkGatewayGroup kube-system/a: Invalid",
        },
        Case {
            answer: (500, "InternalError"),
            want: "the API server cannot be reached",
        },
        Case {
            answer: (429, "TooManyRequests"),
            want: "the API server cannot be reached",
        },
    ];
    for Case {
        answer: (code, reason),
        want,
    } in cases
    {
        let (store, _) = fake::store(move |_| Answer::failure(code, reason));
        let object = Object::from_value(group("a", 1)).unwrap();
        let error = store.update(object).await.unwrap_err();
        assert!(error.to_string().contains(want), "{code} {reason}: {error}");
    }
    let (store, _) = fake::store(|_| Answer::failure(404, "NotFound"));
    let created = store.create(Object::from_value(group("a", 1)).unwrap());
    let error = created.await.unwrap_err().to_string();
    assert!(error.contains("kubectl apply -f deploy/crds"), "{error}");
    assert_eq!(store.read(&key("a")).await.unwrap(), None);
    assert!(!store.remove(&key("a")).await.unwrap());
}

//! An API server of few words: it answers each request as the test says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use kube::{Client, Config};
use serde_json::Value;

use crate::api::ApiStore;

/// An answer.
pub(super) enum Answer {
    /// A status code and a body, and that is all.
    Whole(u16, String),
    /// The beginning of a body whose rest never comes.
    Open(String),
}

impl Answer {
    pub(super) fn json(value: &Value) -> Self {
        Answer::Whole(200, value.to_string())
    }

    /// A failure as the API server words it.
    pub(super) fn failure(code: u16, reason: &str) -> Self {
        let status = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason,
        });
        Answer::Whole(code, status.to_string())
    }

    /// Events of a watch, one a line.
    pub(super) fn lines(events: &[Value]) -> String {
        events.iter().map(|event| format!("{event}\n")).collect()
    }
}

/// The method and the path with its query of each request so far.
pub(super) type Requests = Arc<Mutex<Vec<String>>>;

/// A store whose requests are answered by `answer`, which is given all of them, the last one included.
pub(super) fn store(
    answer: impl Fn(&[String]) -> Answer + Send + Sync + 'static,
) -> (ApiStore, Requests) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Requests::default();
    let (shared, answer) = (Arc::clone(&requests), Arc::new(answer));
    // Ends with the process of the tests.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (requests, answer) = (Arc::clone(&shared), Arc::clone(&answer));
            std::thread::spawn(move || serve(stream, &requests, &*answer));
        }
    });
    let mut config = Config::new(format!("http://{address}").parse().unwrap());
    config.default_retry = false;
    (Client::try_from(config).unwrap().into(), requests)
}

/// One request per connection. Whoever hangs up ends it.
fn serve(stream: TcpStream, requests: &Requests, answer: &impl Fn(&[String]) -> Answer) {
    let mut reader = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    let _ = reader.read_line(&mut first);
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(1..) if line != "\r\n" => {}
            _ => break,
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let _ = reader.read_exact(&mut vec![0; length]);
    let answer = {
        let mut requests = requests.lock().unwrap();
        requests.push(first.trim_end().trim_end_matches(" HTTP/1.1").to_owned());
        answer(&requests)
    };
    let head = "Content-Type: application/json\r\nConnection: close";
    let mut stream = reader.into_inner();
    let _ = match &answer {
        Answer::Whole(code, body) => {
            let length = body.len();
            write!(
                stream,
                "HTTP/1.1 {code} X\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}"
            )
        }
        Answer::Open(body) => write!(stream, "HTTP/1.1 200 X\r\n{head}\r\n\r\n{body}"),
    };
    if let Answer::Open(_) = answer {
        // Until the client hangs up.
        let _ = stream.read(&mut [0]);
    }
}

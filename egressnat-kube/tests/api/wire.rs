//! The way to the API server, which a test can cut.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;

/// How the way is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// As it should be.
    Open,
    /// Connections break, and new ones do.
    Broken,
    /// Nothing arrives, and nobody is told.
    Silent,
}

/// A way to the API server. It ends with its runtime.
pub(crate) struct Wire {
    pub(crate) port: u16,
    state: Arc<watch::Sender<State>>,
}

impl Wire {
    pub(crate) fn to(target: u16, runtime: &Handle) -> Self {
        let state = Arc::new(watch::Sender::new(State::Open));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::clone(&state);
        runtime.spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else {
                    continue;
                };
                tokio::spawn(connection(client, target, shared.subscribe()));
            }
        });
        Self { port, state }
    }

    pub(crate) fn set(&self, state: State) {
        self.state.send_replace(state);
    }
}

async fn connection(client: TcpStream, target: u16, mut state: watch::Receiver<State>) {
    let broken = state.clone();
    let carried = async {
        if state
            .wait_for(|state| *state != State::Silent)
            .await
            .is_err()
        {
            return;
        }
        let address = SocketAddr::from(([127, 0, 0, 1], target));
        let Ok(server) = TcpStream::connect(address).await else {
            return;
        };
        let (client_in, client_out) = client.into_split();
        let (server_in, server_out) = server.into_split();
        tokio::select! {
            () = carry(client_in, server_out, state.clone()) => {}
            () = carry(server_in, client_out, state) => {}
        }
    };
    let mut broken = broken;
    tokio::select! {
        () = carried => {}
        _ = broken.wait_for(|state| *state == State::Broken) => {}
    }
}

/// Carries what comes, and holds it back while the way is silent.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<State>,
) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let open = state
            .wait_for(|state| *state != State::Silent)
            .await
            .is_ok();
        if !open || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

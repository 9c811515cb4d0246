//! Connections with buffers that fit a small program.

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{ClientBuilder, ConfigExt};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

use super::REQUEST;

/// Bytes of an answer that are read at once. A connection keeps the largest buffer that it ever used, and a watch its connection, over which its
/// list came: with hyper's 400 kB the lists of an agent would cost it megabytes for good.
const READ: usize = 32 << 10;

/// A client for a configuration: kube's own without what we have no use for, which is retries and traces. How long an answer may take is
/// for who asks.
pub(super) fn client(config: Config) -> kube::Result<Client> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(REQUEST));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let transport = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .http1_max_buf_size(READ)
        .build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(transport);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

//! A cluster of one's own.

use futures_util::future::join_all;
use serde_json::Value;

use crate::{
    Api, Client, Nats, NatsConfig, Node, NodeConfig, Proxy, Stream, eventually, free_port,
};

/// Nodes that all know each other, on one NATS server or on two with a route between them.
#[derive(Debug)]
pub struct Sandbox {
    /// The nodes, named `node-0`, `node-1` and so on. First, so that they end before their bus does.
    pub nodes: Vec<Node>,
    /// The NATS servers; node `i` is on server `i % nats.len()`.
    pub nats: Vec<Nats>,
}

/// What a sandbox is made of.
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    nodes: usize,
    example: Option<String>,
    pair_of_nats: bool,
    ports: bool,
    nats: NatsConfig,
    keys: Vec<String>,
    cluster: String,
    toml: String,
}

// === impl SandboxConfig ===

impl SandboxConfig {
    /// How many nodes; three unless told otherwise.
    #[must_use]
    pub fn nodes(mut self, count: usize) -> Self {
        self.nodes = count;
        self
    }

    /// Nodes that are an example of `server/examples/` in place of `unisono`.
    #[must_use]
    pub fn example(mut self, name: &str) -> Self {
        self.example = Some(name.to_owned());
        self
    }

    /// Two NATS servers with a route between them in place of one.
    #[must_use]
    pub fn pair_of_nats(mut self) -> Self {
        self.pair_of_nats = true;
        self
    }

    /// How the one NATS server differs from a plain one.
    #[must_use]
    pub fn nats(mut self, config: NatsConfig) -> Self {
        self.nats = config;
        self
    }

    /// Each node on a port of its own that stays the same over restarts.
    #[must_use]
    pub fn ports(mut self) -> Self {
        self.ports = true;
        self
    }

    /// An API key of every node.
    #[must_use]
    pub fn key(mut self, key: &str) -> Self {
        self.keys.push(key.to_owned());
        self
    }

    /// More lines for the section `[cluster]` of every node.
    #[must_use]
    pub fn cluster(mut self, lines: &str) -> Self {
        self.cluster.push_str(lines);
        self
    }

    /// More sections for every node.
    #[must_use]
    pub fn toml(mut self, sections: &str) -> Self {
        self.toml.push_str(sections);
        self
    }

    /// Starts all of it, and waits until every node lists every node.
    pub async fn start(self) -> Sandbox {
        let nats = match self.pair_of_nats {
            true => Vec::from(Nats::pair().await),
            false => vec![self.nats.clone().start().await],
        };
        self.start_on(nats).await
    }

    /// As [`SandboxConfig::start`], on these NATS servers.
    pub async fn start_on(self, nats: Vec<Nats>) -> Sandbox {
        let nodes = (0..self.nodes).map(|i| self.node(i, &nats)).collect();
        Self::start_all(nodes, nats).await
    }

    /// As [`SandboxConfig::start`], on these NATS servers, each node with a link of its own to its server.
    pub async fn start_behind_links(self, nats: Vec<Nats>) -> (Sandbox, Vec<Proxy>) {
        let (mut nodes, mut links) = (vec![], vec![]);
        for i in 0..self.nodes {
            let link = Proxy::to(nats[i % nats.len()].port()).await;
            let url = format!("nats://127.0.0.1:{}", link.port());
            nodes.push(self.node(i, &nats).nats([url]));
            links.push(link);
        }
        (Self::start_all(nodes, nats).await, links)
    }

    async fn start_all(nodes: Vec<NodeConfig>, nats: Vec<Nats>) -> Sandbox {
        let starts = nodes.into_iter().map(NodeConfig::start);
        let sandbox = Sandbox {
            nodes: join_all(starts).await,
            nats,
        };
        sandbox.all_know_each_other().await;
        sandbox
    }

    /// The configuration of node `i`.
    pub fn node(&self, i: usize, nats: &[Nats]) -> NodeConfig {
        let mut config = Node::config(&format!("node-{i}"))
            .nats([nats[i % nats.len()].url()])
            .cluster(&self.cluster)
            .toml(&self.toml);
        for key in &self.keys {
            config = config.key(key);
        }
        if let Some(name) = &self.example {
            config = config.example(name);
        }
        match self.ports {
            true => config.port(free_port()),
            false => config,
        }
    }
}

// === impl Sandbox ===

impl Sandbox {
    /// So many nodes on one NATS server, with no configuration beyond that: the open mode.
    pub async fn start(nodes: usize) -> Self {
        Self::config().nodes(nodes).start().await
    }

    /// What may be set before the start.
    pub fn config() -> SandboxConfig {
        SandboxConfig {
            nodes: 3,
            example: None,
            pair_of_nats: false,
            ports: false,
            nats: NatsConfig::default(),
            keys: vec![],
            cluster: String::new(),
            toml: String::new(),
        }
    }

    /// A client on node `i`, greeted, in the room of this path.
    pub async fn client(&self, i: usize, path: &str) -> Client {
        self.nodes[i].client(path).await
    }

    /// The event stream of this path on node `i`, greeted.
    pub async fn stream(&self, i: usize, path: &str) -> Stream {
        self.nodes[i].stream(path).await
    }

    /// The HTTP API of node `i`.
    pub fn api(&self, i: usize) -> &Api {
        self.nodes[i].api()
    }

    /// The node ids, in the order of the nodes.
    pub async fn ids(&self) -> Vec<String> {
        join_all(self.nodes.iter().map(Node::id)).await
    }

    /// Waits until the lists of all nodes hold exactly these nodes.
    pub async fn all_know_each_other(&self) {
        let mut all = self.ids().await;
        all.sort();
        for node in &self.nodes {
            eventually("every node lists every node", async || {
                let listed = listed_ids(&node.api().get("/api/v1/nodes").await.ok());
                if listed == all {
                    Ok(())
                } else {
                    Err((listed, all.clone()))
                }
            })
            .await;
        }
    }
}

fn listed_ids(nodes: &Value) -> Vec<String> {
    let nodes = nodes["nodes"].as_array().expect("a list of nodes");
    let mut ids: Vec<String> = nodes
        .iter()
        .filter_map(|node| node["id"].as_str().map(str::to_owned))
        .collect();
    ids.sort();
    ids
}

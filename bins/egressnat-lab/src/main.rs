//! The lab's command line.
#![expect(clippy::print_stdout, reason = "a command line prints")]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use egressnat_kube::{Applied, Kind};
use egressnat_lab::{Cut, Lab, ObjectPlace, Target, UpOptions, demo, get, server};

/// A cluster of network namespaces on this machine, with egressnat in it.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Which lab: several can be up side by side.
    #[arg(long, global = true, default_value = "default")]
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Brings the lab up, or brings what is missing of it, and prints what is where.
    Up {
        /// File or directory of manifests; repeatable.
        #[arg(long, value_name = "PATH")]
        manifests: Vec<PathBuf>,
        /// Workers, where the manifests have no nodes.
        #[arg(long, value_name = "N", default_value_t = 2)]
        nodes: usize,
        /// Start a real kube-apiserver and keep the objects there.
        #[arg(long)]
        api: bool,
    },
    /// Runs a command in a pod (NAMESPACE/NAME), a node (node/NAME), the router or the outside.
    Exec {
        /// Where.
        target: Target,
        /// What, after '--'.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Applies manifests.
    Apply {
        /// File or directory.
        #[arg(short = 'f', value_name = "PATH")]
        file: PathBuf,
    },
    /// Deletes the objects that manifests name.
    Delete {
        /// File or directory.
        #[arg(short = 'f', value_name = "PATH")]
        file: PathBuf,
    },
    /// Shows objects.
    Get {
        /// Kind: any name that kubectl takes.
        kind: Kind,
        /// One object only.
        object: Option<String>,
        /// One namespace only.
        #[arg(short = 'n', long)]
        namespace: Option<String>,
        /// 'yaml' for whole documents.
        #[arg(short = 'o', value_name = "FORMAT", value_parser = ["yaml"])]
        output: Option<String>,
    },
    /// Takes the power from a node: its kernel's state and its pods are gone.
    PowerOff {
        /// The node.
        node: String,
    },
    /// Gives a node its power back.
    PowerOn {
        /// The node.
        node: String,
    },
    /// Stops a node's agent in its tracks (SIGSTOP); its kernel goes on.
    Freeze {
        /// The node.
        node: String,
    },
    /// Lets a frozen agent go on.
    Thaw {
        /// The node.
        node: String,
    },
    /// Kills a node's agent (SIGKILL) and starts another.
    RestartAgent {
        /// The node.
        node: String,
    },
    /// Kills the controller (SIGKILL) and starts another.
    RestartController,
    /// Cuts a node off from everybody, until 'mend'.
    Cut {
        /// The node.
        node: String,
        /// From the API server alone, where the lab has one.
        #[arg(long)]
        api: bool,
    },
    /// Ends all cuts.
    Mend,
    /// Takes the lab down; nothing is left.
    Down,
    /// The tour: from the seeds' manifests to a server that sees the floating IP, before and after a gateway's death.
    Demo {
        /// With a real kube-apiserver.
        #[arg(long)]
        api: bool,
    },
    /// Prints the path of the kubeconfig of a lab that was brought up with --api.
    Kubeconfig,
    /// Runs the lab's API server (the lab starts it).
    #[command(hide = true)]
    ServeApi,
    /// Serves HTTP and echo in this namespace (the lab starts it outside).
    #[command(hide = true)]
    Serve,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let lab = Lab::open(&arguments.name)?;
    match arguments.command {
        Command::Up {
            manifests,
            nodes,
            api,
        } => {
            let errors = lab.up(&UpOptions {
                manifests,
                workers: nodes,
                objects: place(api),
                ..UpOptions::default()
            })?;
            print!("{}", overview(&lab)?);
            return Ok(report(&errors));
        }
        Command::Exec { target, command } => return exec(&lab, &target, &command),
        Command::Apply { file } => {
            let outcome = lab.apply(&file)?;
            for (key, applied) in &outcome.applied {
                let what = match applied {
                    Applied::Created => "created",
                    Applied::Changed => "configured",
                    Applied::Unchanged => "unchanged",
                };
                println!("{key} {what}");
            }
            return Ok(report(&outcome.errors));
        }
        Command::Delete { file } => {
            let outcome = lab.delete(&file)?;
            for key in &outcome.deleted {
                println!("{key} deleted");
            }
            return Ok(report(&outcome.errors));
        }
        Command::Get {
            kind,
            object,
            namespace,
            output,
        } => show(&lab, kind, object, namespace, output.is_some())?,
        Command::PowerOff { node } => lab.power_off(&node)?,
        Command::PowerOn { node } => lab.power_on(&node)?,
        Command::Freeze { node } => lab.freeze(&node)?,
        Command::Thaw { node } => lab.thaw(&node)?,
        Command::RestartAgent { node } => lab.restart_agent(&node)?,
        Command::RestartController => lab.restart_controller()?,
        Command::Cut { node, api: true } => lab.cut(Cut::FromApiServer(&node))?,
        Command::Cut { node, api: false } => lab.cut(Cut::Off(&node))?,
        Command::Mend => lab.mend()?,
        Command::Down => lab.down()?,
        Command::Demo { api } => demo::run(&lab, place(api), &mut std::io::stdout())?,
        Command::Kubeconfig => println!("{}", lab.kubeconfig()?.display()),
        Command::ServeApi => lab.serve_api()?,
        Command::Serve => server::serve()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn place(api: bool) -> ObjectPlace {
    if api {
        ObjectPlace::ApiServer
    } else {
        ObjectPlace::Directory
    }
}

/// Tells what could not be used; the rest was.
fn report(errors: &[String]) -> ExitCode {
    for error in errors {
        eprintln!("error: {error}");
    }
    if errors.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn overview(lab: &Lab) -> Result<String> {
    let store = lab.store()?;
    let mut text = format!(
        "lab {}: everything of it is below {}\n",
        lab.name(),
        lab.directory().display()
    );
    for kind in [
        Kind::Node,
        Kind::Pod,
        Kind::NetworkGatewayGroup,
        Kind::AnthosNetworkGateway,
        Kind::EgressNatPolicy,
    ] {
        let objects = store.list(kind)?;
        if !objects.is_empty() {
            text += &format!("\n{}\n{}", kind.plural(), get::table(kind, &objects));
        }
    }
    text += "\noutside: 8.8.8.8 and 9.9.9.9, HTTP on port 80, TCP and UDP echo on port 7\n";
    text += "try: egressnat-lab exec alice/frontend-0 -- curl -s http://8.8.8.8/\n";
    if let Ok(kubeconfig) = lab.kubeconfig() {
        text += &format!("for kubectl: export KUBECONFIG={}\n", kubeconfig.display());
    }
    Ok(text)
}

fn exec(lab: &Lab, target: &Target, command: &[String]) -> Result<ExitCode> {
    let (program, arguments) = command.split_first().context("no command was given")?;
    let status = lab
        .command(target, program)?
        .args(arguments)
        .status()
        .with_context(|| format!("could not run {program} in {target}"))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    // A command that a signal ended has no code of its own.
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

fn show(
    lab: &Lab,
    kind: Kind,
    name: Option<String>,
    namespace: Option<String>,
    yaml: bool,
) -> Result<()> {
    let mut objects = lab.store()?.list(kind)?;
    objects.retain(|object| name.as_deref().is_none_or(|name| object.name() == name));
    objects.retain(|object| {
        namespace
            .as_deref()
            .is_none_or(|namespace| object.namespace() == Some(namespace))
    });
    if let (Some(name), true) = (&name, objects.is_empty()) {
        bail!("there is no {kind} {name:?}");
    }
    if yaml {
        for object in &objects {
            println!(
                "---\n{}",
                serde_yaml_ng::to_string(object.value())?.trim_end()
            );
        }
    } else {
        print!("{}", get::table(kind, &objects));
    }
    Ok(())
}

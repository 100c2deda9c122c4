//! `tessera offer`: what is offered to whom just now.
//!
//! Must never decide what may be taken back.

use crate::api::{Offer, read};
use crate::error::CliError;
use crate::list::{self, List, WatchArgs};
use crate::output::{Column, col, text, wide};
use crate::wait::YesArgs;
use crate::{Context, dry, names, output};
use serde_json::{Value, json};
use std::process::ExitCode;

/// What to do with offers.
#[derive(Debug, clap::Subcommand)]
pub enum OfferCommand {
    /// List the offers that wait for an answer
    #[command(
        after_help = "Examples:\n  tessera offer ls\n  tessera offer ls --framework words -w\n\nAn offer that is not answered within its time is declined for its framework."
    )]
    Ls {
        /// Only those to this framework
        #[arg(long, value_name = "FRAMEWORK")]
        framework: Option<String>,
        /// Only those of this agent
        #[arg(long, value_name = "AGENT")]
        agent: Option<String>,
        /// Only those to frameworks of this role, and of roles below
        #[arg(long, value_name = "ROLE", value_parser = names::parse_role)]
        role: Option<String>,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Take offers back; their frameworks are told
    #[command(after_help = "Examples:\n  tessera offer rm o17 --dry-run\n  tessera offer rm o17 o18 --yes")]
    Rm {
        /// Their ids, as `ls` shows them
        #[arg(required = true, value_name = "OFFER")]
        offers: Vec<String>,
        /// Only say what would be taken back
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        yes: YesArgs,
    },
}

const COLUMNS: [Column; 7] =
    [col("ID"), text("FRAMEWORK"), wide("ROLE"), col("AGENT"), text("RESOURCES"), col("REVOCABLE"), col("AGE")];

/// Run it.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn run(context: &Context, command: OfferCommand) -> Result<ExitCode, CliError> {
    let client = context.client()?;
    match command {
        OfferCommand::Ls { framework, agent, role, watch } => {
            let mut request = client.get(&["v1", "offers"]);
            if let Some(framework) = framework {
                request = request.query("framework", names::framework(&client, &framework, names::Say::Enough).await?);
            }
            if let Some(agent) = agent {
                request = request.query("agent", names::agent(&client, &agent, names::Say::Enough).await?);
            }
            if let Some(role) = role {
                request = request.query("role", role);
            }
            let list = List { columns: &COLUMNS, row: &row, keep: &|_| true, empty: "no offers wait for an answer" };
            names::known(list::show(context, &client, request, &list, watch).await, "/v1/offers")?;
        }
        OfferCommand::Rm { offers, dry_run: true, .. } => {
            let requests = offers.iter().map(|offer| client.delete(&["v1", "offers", offer]));
            dry::rehearse_all(context, &client, requests.collect()).await?;
        }
        OfferCommand::Rm { offers, yes, dry_run: false } => {
            yes.confirm(&format!("{} offers are taken back; their frameworks are told.", offers.len()))?;
            for offer in &offers {
                client.send(client.delete(&["v1", "offers", offer])).await?;
                if !context.is_data() {
                    output::line(&format!("{} is taken back", output::clean(offer)))?;
                }
            }
            if context.is_data() {
                let items: Vec<Value> = offers.iter().map(|offer| json!({"id": offer})).collect();
                output::document(&json!({"items": items}))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(value: &Value, _now: u64) -> Result<Vec<String>, CliError> {
    let o: Offer = read(value)?;
    let framework = if o.framework_name.is_empty() { o.framework } else { o.framework_name };
    let revocable = if o.revocable { "yes" } else { "no" };
    Ok(vec![
        o.id,
        framework,
        o.role,
        o.agent,
        output::resources(&o.available),
        revocable.to_owned(),
        format!("{}.{}s", o.age_ms / 1_000, o.age_ms % 1_000 / 100),
    ])
}

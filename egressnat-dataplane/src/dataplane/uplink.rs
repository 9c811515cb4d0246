//! The uplink as it is now: with another MAC address, plugged in again, or made anew under its name.

use egressnat_core::Report;

use super::doubt::Doubts;
use super::{Dataplane, OpenError, announcer, fail};
use crate::config::Config;
use crate::handover::Handover;
use crate::network::UplinkChange;
use crate::probe::Prober;

impl Dataplane {
    /// Looks whether the uplink is another one. While there is none, that is told.
    pub(super) async fn follow_uplink(&mut self, doubts: &mut Doubts, report: &mut Report) {
        let followed = self.network.follow(&self.config, &mut self.uplink).await;
        let outcome = match followed {
            Ok(UplinkChange::Same) => Ok(()),
            Ok(UplinkChange::OtherMac | UplinkChange::CarrierBack) => {
                self.tell_neighbors();
                Ok(())
            }
            Ok(UplinkChange::MadeAnew) => {
                *doubts = Doubts::ALL;
                self.reopen_uplink().await
            }
            Err(error) => Err(error.into()),
        };
        if let Err(error) = outcome {
            fail(report, "the uplink", &error);
        }
    }

    /// Neighbors know floating IPs by the uplink's MAC address, and while there was no carrier they were told nothing.
    fn tell_neighbors(&mut self) {
        let mac = self.uplink.mac;
        self.announcer.follow(mac);
        self.prober.follow(mac);
        let floating = self.kept.plan.floating_ips.iter();
        for address in floating.filter(|address| self.kept.is_whole(**address)) {
            self.announcer.announce(*address);
        }
    }

    /// Opens anew what was open on the interface that is gone. Its addresses went with it.
    async fn reopen_uplink(&mut self) -> Result<(), OpenError> {
        let config = Config {
            uplink: Some(self.uplink.name.clone()),
            ..self.config.clone()
        };
        let mut uplink = self.network.uplink(&config).await?;
        // The node's own come a moment later.
        if uplink.addresses.is_empty() {
            uplink.addresses.clone_from(&self.uplink.addresses);
        }
        self.announcer = announcer(&uplink, &self.nft, &self.config)?;
        self.prober = Prober::open(uplink.index, uplink.mac)?;
        let settings = self.network.handover_settings(&uplink.name, uplink.index);
        self.handover = Handover::of(settings).await;
        let neighbors = self.network.neighbors(uplink.index);
        self.segment.follow(self.prober.ears(), neighbors);
        tracing::info!(interface = uplink.name, "the uplink was made anew");
        self.uplink = uplink;
        Ok(())
    }
}

//! Going on in a new session, with another coordinator if need be.

use shoal_proto::WriteId;

use super::super::progress::Monitor;
use super::Session;
use super::repeat::{Stage, how_to_find_out, may_be_repeated, unsettled};
use super::statements::Showing;
use crate::client::ClientError;

impl Session {
    /// Goes on after the session of a statement was lost: runs it again if that
    /// does no harm, and else says that nobody knows what became of it.
    pub(super) async fn go_on(
        &mut self,
        sql: &str,
        showing: &Showing,
        write_id: &WriteId,
        stage: Stage,
        lost: ClientError,
    ) -> Result<(), ClientError> {
        let refused = lost.nothing_was_done();
        let outcome = match self.reconnect(&lost).await {
            Err(error) => Err(error),
            Ok(()) if may_be_repeated(sql, stage, refused) => {
                let mut again = Stage::Planning;
                self.attempt(sql, showing, write_id, &mut again).await
            }
            Ok(()) => Err(lost),
        };
        match outcome {
            Err(error) if stage == Stage::Changing && !refused => {
                let id = (!self.settings.has_write_id()).then_some(write_id);
                Err(unsettled(error, &how_to_find_out(sql, id)))
            }
            outcome => outcome,
        }
    }

    /// Connects again, says so, and sets again what was set.
    pub(super) async fn reconnect(&mut self, lost: &ClientError) -> Result<(), ClientError> {
        let place = self.options.screen.progress_place();
        let mut monitor = Monitor::start(place, "connecting");
        let before = self.client.address().clone();
        let mut client = self.client.clone();
        let connecting = async {
            match lost {
                // It answers.
                ClientError::SessionEnded(_) => client.renew().await?,
                _ => client.reconnect().await?,
            }
            Ok::<_, ClientError>(client)
        };
        self.client = monitor.watch(&mut self.interrupts, connecting).await?;
        drop(monitor);
        self.client.learn_coordinators();
        let now = self.client.address();
        let what = match lost {
            ClientError::SessionEnded(_) => format!("session at {before} ended"),
            ClientError::Stopping(_) => format!("{before} is stopping"),
            _ => format!("connection to {before} lost"),
        };
        let then =
            if *now == before { "connected again".to_owned() } else { format!("now connected to {now}") };
        self.print_notice(&format!("{what}; {then}"));
        self.restore_settings().await
    }

    async fn restore_settings(&mut self) -> Result<(), ClientError> {
        for sql in self.settings.statements() {
            match self.interrupts.guard(self.client.update(&sql)).await {
                Ok(_) => {}
                Err(ClientError::Statement(failure)) => {
                    self.print_notice(&format!("not set again: {sql} ({failure})"));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

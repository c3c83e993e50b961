//! Where the coordinators of one cluster are.

use std::fmt;

use super::{Address, ClientError};

/// The coordinators of one cluster, in the order in which they are tried; at
/// least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses(Vec<Address>);

impl Addresses {
    /// Reads `shoal://user:password@host:port,host:port`, where scheme and user
    /// are those of all; or one address.
    ///
    /// # Errors
    /// `Usage`, naming the address that is none.
    pub fn parse(text: &str) -> Result<Self, ClientError> {
        let mut texts = text.trim().split(',');
        let first = Address::parse(texts.next().unwrap_or_default())?;
        let mut all = Self(vec![first.clone()]);
        for other in texts {
            all.add([first.beside(other)?]);
        }
        Ok(all)
    }

    /// Adds what is not there yet.
    pub fn add(&mut self, others: impl IntoIterator<Item = Address>) {
        for other in others {
            if !self.0.iter().any(|known| known.url() == other.url()) {
                self.0.push(other);
            }
        }
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Address> {
        self.0.iter()
    }

    /// All of them, this one first.
    pub(super) fn beginning_with(&self, first: &Address) -> Vec<Address> {
        let others = self.0.iter().filter(|address| address.url() != first.url());
        std::iter::once(first).chain(others).cloned().collect()
    }

    /// All of them, this one last.
    pub(super) fn ending_with(&self, last: &Address) -> Vec<Address> {
        let mut all = self.beginning_with(last);
        all.rotate_left(1);
        all
    }
}

impl From<Address> for Addresses {
    fn from(address: Address) -> Self {
        Self(vec![address])
    }
}

/// As [`Addresses::parse`] takes it, without user and password.
impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places: Vec<&str> = self.0.iter().map(Address::place).collect();
        write!(f, "shoal://{}", places.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        assert_eq!(Addresses::parse(text).unwrap().to_string(), expected, "{text}");
    }

    #[test]
    fn hosts_are_separated_by_commas() {
        check("shoal://a:1,b:2,c", "shoal://a:1,b:2,c:7400");
        check("a, b:2", "shoal://a:7400,b:2");
        check("http://a:1,http://b:2/", "shoal://a:1,b:2");
        check("shoal://[::1]:1,[::1]:2", "shoal://[::1]:1,[::1]:2");
        check("shoal://a:1", "shoal://a:1");
        check("shoal://a:1,b:2,a:1", "shoal://a:1,b:2");
    }

    #[test]
    fn one_user_is_who_asks_all_of_them() {
        let all = Addresses::parse("shoal://ann:secret@a:1,b:2,bob@c:3").unwrap();
        let users: Vec<_> = all.iter().map(|address| (address.user(), address.password())).collect();
        assert_eq!(users, [(Some("ann"), "secret"), (Some("ann"), "secret"), (Some("bob"), "")]);
        assert!(!format!("{all} {all:?}").contains("secret"));
    }

    #[test]
    fn the_address_that_is_wrong_is_named() {
        for (text, why) in [
            ("shoal://a:1,", "`` is not the address of a coordinator"),
            ("shoal://a:1,,b:2", "`` is not"),
            ("shoal://a:1,b:two", "`b:two` is not"),
            ("shoal://a:1,https://b:2", "TLS is not supported yet"),
            ("shoal://a:1,b:2/db", "nothing may follow the port"),
            (",a:1", "`` is not"),
        ] {
            let error = Addresses::parse(text).unwrap_err();
            assert_eq!(error.exit_code(), 3, "{text}");
            assert!(error.to_string().contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn whoever_was_lost_is_tried_last() {
        let mut all = Addresses::parse("a:1,b:1,c:1").unwrap();
        let second = Address::parse("b:1").unwrap();
        let places = |order: Vec<Address>| order.iter().map(|a| a.place().to_owned()).collect::<Vec<_>>();
        assert_eq!(places(all.ending_with(&second)), ["a:1", "c:1", "b:1"]);
        assert_eq!(places(all.beginning_with(&second)), ["b:1", "a:1", "c:1"]);
        all.add([second, Address::parse("d:1").unwrap()]);
        assert_eq!(all.to_string(), "shoal://a:1,b:1,c:1,d:1");
    }
}

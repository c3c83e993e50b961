//! Where a coordinator is, as a person writes it.

use std::fmt;

use url::Url;

use super::ClientError;

/// The port of a coordinator that does not say another.
const PORT_DEFAULT: u16 = 7400;

/// A coordinator's address: `shoal://user:password@host:port`, where all but
/// the host may be left out; `http://` and a bare `host:port` mean the same.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// Host and port, an IPv6 host in brackets.
    authority: String,
    user: Option<String>,
    password: Option<String>,
}

impl Address {
    /// Reads an address.
    ///
    /// # Errors
    /// `Usage`, saying what an address looks like.
    pub fn parse(text: &str) -> Result<Self, ClientError> {
        let wrong = |why: &str| {
            ClientError::Usage(format!(
                "`{text}` is not the address of a coordinator ({why}); write it like shoal://127.0.0.1:{PORT_DEFAULT}"
            ))
        };
        let text = text.trim();
        let (scheme, rest) = text.split_once("://").unwrap_or(("shoal", text));
        match scheme {
            "shoal" | "http" | "grpc" | "grpc+tcp" => {}
            "https" | "grpc+tls" | "shoals" => return Err(wrong("TLS is not supported yet")),
            _ => return Err(wrong("its scheme is unknown")),
        }
        let url = Url::parse(&format!("shoal://{rest}")).map_err(|error| wrong(&error.to_string()))?;
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| wrong("it has no host"))?;
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("nothing may follow the port"));
        }
        let user = Some(url.username()).filter(|user| !user.is_empty()).map(str::to_owned);
        Ok(Self {
            authority: format!("{host}:{}", url.port().unwrap_or(PORT_DEFAULT)),
            user,
            password: url.password().map(str::to_owned),
        })
    }

    /// Reads the address of another coordinator of the same cluster; the user is
    /// the same unless it names one.
    ///
    /// # Errors
    /// As [`Address::parse`].
    pub fn beside(&self, text: &str) -> Result<Self, ClientError> {
        let other = Self::parse(text)?;
        match other.user {
            Some(_) => Ok(other),
            None => Ok(Self { authority: other.authority, ..self.clone() }),
        }
    }

    /// Host and port.
    pub fn place(&self) -> &str {
        &self.authority
    }

    /// What a channel connects to.
    pub fn url(&self) -> String {
        format!("http://{}", self.authority)
    }

    /// The user that the address names.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The password that the address names; empty without one.
    pub fn password(&self) -> &str {
        self.password.as_deref().unwrap_or_default()
    }
}

/// Without the password.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shoal://{}", self.authority)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        assert_eq!(Address::parse(text).unwrap().url(), expected, "{text}");
    }

    #[test]
    fn every_spelling_reaches_the_same_place() {
        check("shoal://127.0.0.1:7400", "http://127.0.0.1:7400");
        check("http://127.0.0.1:7400/", "http://127.0.0.1:7400");
        check("grpc://db.example:9", "http://db.example:9");
        check("localhost", "http://localhost:7400");
        check("localhost:81", "http://localhost:81");
        check("[::1]:81", "http://[::1]:81");
        check("http://localhost", "http://localhost:7400");
    }

    #[test]
    fn a_user_is_read_and_a_password_is_not_shown() {
        let address = Address::parse("shoal://ann:secret@h:1").unwrap();
        assert_eq!((address.user(), address.password()), (Some("ann"), "secret"));
        assert_eq!(format!("{address} {address:?}"), "shoal://h:1 Address(shoal://h:1)");
    }

    #[test]
    fn a_wrong_address_says_what_is_right() {
        for (text, why) in [
            ("https://h:1", "TLS is not supported yet"),
            ("mysql://h:1", "scheme is unknown"),
            ("shoal://h:99999", "invalid port"),
            ("shoal://h:1/db", "nothing may follow"),
            ("", "host"),
        ] {
            let error = Address::parse(text).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("shoal://127.0.0.1:7400"), "{error}");
        }
    }
}

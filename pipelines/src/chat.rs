//! Renders a conversation by the model's own chat template.
//!
//! Templates are Jinja as Hugging Face runs it (`apply_chat_template`), and come from strangers: they see the messages
//! and nothing else, and their work is bounded.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::Serialize;

use crate::error::PipelineError;

/// Instructions that one rendering may take; long conversations take some hundred thousand.
const FUEL: u64 = 20_000_000;
/// Nested blocks and macros.
const RECURSION: usize = 64;
const NAME: &str = "chat_template";

/// A chat template with the texts that it may use.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Parses a template.
    ///
    /// # Errors
    ///
    /// When it is not Jinja.
    pub fn new(source: String, bos: String, eos: String) -> Result<Self, PipelineError> {
        let mut environment = Environment::new();
        environment.set_syntax(syntax()?);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", |format: String| strftime(&format, now()));
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, source)
            .map_err(|error| PipelineError::ChatTemplate { reason: error.to_string() })?;
        Ok(Self { environment, bos, eos })
    }

    /// The prompt of a conversation, up to where the model answers. Messages have a role and a content, as the template
    /// expects them.
    ///
    /// # Errors
    ///
    /// In words, when the template refuses the conversation.
    pub fn render(&self, messages: &(impl Serialize + ?Sized)) -> Result<String, String> {
        let context = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => true,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
        };
        let rendered = self.environment.get_template(NAME).and_then(|template| template.render(context));
        rendered.map_err(|error| match error.detail() {
            Some(detail) => detail.to_owned(),
            None => error.to_string(),
        })
    }
}

/// Blocks on lines of their own leave no trace, as in Hugging Face's environment.
fn syntax() -> Result<SyntaxConfig, PipelineError> {
    let built = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    built.map_err(|error| PipelineError::ChatTemplate { reason: error.to_string() })
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Python's `json.dumps`, as templates expect it: separators with a space, no escapes for HTML.
fn to_json(value: &Value, options: minijinja::value::Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Separators, key order and escapes of other scripts have one form here.
    let _same: (Option<bool>, Option<bool>) = (options.get("ensure_ascii")?, options.get("sort_keys")?);
    let mut out = Vec::new();
    let written = match indent {
        Some(spaces) => {
            let spaces = " ".repeat(spaces.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)),
    };
    written.map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    String::from_utf8(out).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The fields of Python's `strftime` that chat templates use, in UTC.
fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        match letters.next() {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += month_name,
            Some('b') => out += &month_name[..3],
            Some('A') => out += day_name,
            Some('a') => out += &day_name[..3],
            Some('H') => out += &format!("{:02}", second / 3600),
            Some('M') => out += &format!("{:02}", second / 60 % 60),
            Some('S') => out += &format!("{:02}", second % 60),
            Some('%') => out.push('%'),
            other => {
                let message = format!("strftime_now: the field %{} is not supported", other.unwrap_or(' '));
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
    }
    Ok(out)
}

/// Year, month and day of a day since 1970 (<https://howardhinnant.github.io/date_algorithms.html>).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use accel_protocol::{Message, Role};

    use super::{ChatTemplate, strftime};

    fn render(source: &str, content: &str) -> Result<String, String> {
        let template = ChatTemplate::new(source.into(), "<s>".into(), "</s>".into()).unwrap();
        template.render(&[Message { role: Role::User, content: content.into() }])
    }

    #[test]
    fn templates_see_what_hugging_face_gives_them() {
        let source = "{{ bos_token }}{% for message in messages %}\n  {% if message['role'] == 'user' %}\n[{{ \
                      message.content.strip() }}]\n  {% endif %}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}";
        assert_eq!(render(source, "  hi ").unwrap(), "<s>[hi]\n>");
        assert_eq!(render("{{ messages | tojson }}", "<é>").unwrap(), r#"[{"role": "user", "content": "<é>"}]"#);
        assert_eq!(render("{{ raise_exception('no turns') }}", "").unwrap_err(), "no turns");
    }

    #[test]
    fn a_template_that_does_not_end_is_stopped() {
        let source = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        assert!(render(source, "").is_err());
        assert!(ChatTemplate::new("{% if %}".into(), String::new(), String::new()).is_err());
    }

    #[test]
    fn dates_are_written_as_python_does() {
        let written = strftime("%d %b %Y, %A %H:%M:%S", 1_709_210_096).unwrap();
        assert_eq!(written, "29 Feb 2024, Thursday 12:34:56");
        assert!(strftime("%Q", 0).is_err());
    }
}

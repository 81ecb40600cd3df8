//! Generators that read documents which were found for a question: each document goes through by itself, and weighs what
//! the generator says of it (<https://arxiv.org/abs/2005.11401>).
//!
//! Documents are found by somebody else, by the vector of the question.

use accel_backends::tensor::{Tensor, TensorError};

use crate::ModelError;
use crate::cache::State;
use crate::family::encoder::Encoder;
use crate::family::encoder_decoder::EncoderDecoder;
use crate::model::{Begun, Inputs, Outputs};
use crate::rules::Loader;
use crate::spec::retrieval::RetrievalSpec;
use crate::stack::Stack;

/// A generator that reads documents, with its weights.
#[derive(Debug)]
pub struct Retrieval {
    question: Encoder,
    generator: EncoderDecoder,
    documents: usize,
    marginal: Option<bool>,
    start: Option<i64>,
}

impl Retrieval {
    /// Reads a model.
    ///
    /// # Errors
    ///
    /// When its weights cannot be read.
    pub fn load(loader: &Loader<'_>, spec: RetrievalSpec) -> Result<Self, ModelError> {
        Ok(Self {
            question: Encoder::load(&loader.within(&spec.question.rules), spec.question.spec)?,
            generator: EncoderDecoder::load(&loader.within(&spec.generator.rules), spec.generator.spec)?,
            documents: spec.documents,
            marginal: spec.marginal,
            start: spec.start,
        })
    }

    /// The stacks of layers in it.
    pub fn stacks(&self) -> impl Iterator<Item = &Stack> {
        std::iter::once(self.question.stack()).chain(self.generator.stacks())
    }

    /// Answers all that the model's class answers: of `context_input_ids` `[questions * documents, tokens]` and perhaps
    /// `context_attention_mask`, of `decoder_input_ids` `[questions, tokens]`, and of `doc_scores` `[questions,
    /// documents]` or what they are made of, the question's `input_ids` and `retrieved_doc_embeds` `[questions,
    /// documents, width]`. Of a question alone it answers the vector that documents are found by.
    ///
    /// # Errors
    ///
    /// When an input is missing, not supported, or of the wrong shape.
    pub fn answer(&self, inputs: &Inputs) -> Result<Outputs, ModelError> {
        let known = [
            "input_ids",
            "attention_mask",
            "context_input_ids",
            "context_attention_mask",
            "decoder_input_ids",
            "decoder_attention_mask",
            "doc_scores",
            "retrieved_doc_embeds",
            "n_docs",
            "use_cache",
        ];
        inputs.only(&[&known[..], if self.marginal.is_some() { &["do_marginalize"] } else { &[] }].concat())?;
        if inputs.optional("context_input_ids").is_none() && inputs.optional("input_ids").is_some() {
            return Ok(vec![("question_encoder_last_hidden_state".into(), self.asked(inputs)?)]);
        }
        let documents = self.documents(inputs)?;
        let scores = self.scores(inputs, documents)?;
        let mut given = contexts(inputs)?;
        let repeat = |x: &Tensor| {
            let rows = x.dim(0)?;
            x.pick(0, &(0..rows * documents).map(|row| row / documents).collect::<Vec<_>>())
        };
        for name in ["decoder_input_ids", "decoder_attention_mask"] {
            inputs.pass(name, &mut given, name, repeat).map_err(ModelError::at(name))?;
        }
        let asked = inputs.number("do_marginalize").map(|number| number != 0.0);
        let marginal = self.marginal.is_some_and(|marginal| asked.unwrap_or(marginal));
        let mut outputs = Outputs::new();
        for (name, tensor) in self.generator.answer(&given)? {
            match name.as_str() {
                "logits" if marginal => {
                    let scores =
                        scores.as_ref().ok_or_else(|| ModelError::MissingInput { name: "doc_scores".into() })?;
                    let weights = log_softmax(scores).map_err(ModelError::at("doc_scores"))?;
                    let logits = marginalised(&tensor, &weights).map_err(ModelError::at("logits"))?;
                    outputs.push((name, logits));
                }
                "encoder_last_hidden_state" => outputs.push(("generator_enc_last_hidden_state".into(), tensor)),
                _ => outputs.push((name, tensor)),
            }
        }
        // Scores that were given are no answer.
        outputs.extend(scores.filter(|_| inputs.optional("doc_scores").is_none()).map(|it| ("doc_scores".into(), it)));
        Ok(outputs)
    }

    /// Reads documents, and starts one answer of all of a question's.
    ///
    /// # Errors
    ///
    /// When the model does not add probabilities up, or an input is missing.
    pub fn begin(&self, inputs: &Inputs) -> Result<Begun, ModelError> {
        if self.marginal.is_none() {
            return Err(ModelError::no_generation());
        }
        let documents = self.documents(inputs)?;
        let scores = self.scores(inputs, documents)?;
        let scores = scores.ok_or_else(|| ModelError::MissingInput { name: "doc_scores".into() })?;
        let weights = log_softmax(&scores).map_err(ModelError::at("doc_scores"))?;
        let mut given = contexts(inputs)?;
        if let Some(start) = inputs.number("decoder_start_token_id").or(self.start.map(|start| start as f64)) {
            given.insert_number("decoder_start_token_id", start);
        }
        let Begun { mut state, sequences, logits } = self.generator.begin(&given)?;
        for (slot, weight) in weights.to_vec().map_err(ModelError::at("doc_scores"))?.into_iter().enumerate() {
            state.set_weight(slot, weight);
        }
        let logits = marginalised(&logits, &weights).map_err(ModelError::at("logits"))?;
        Ok(Begun { state, sequences: sequences.into_iter().step_by(documents).collect(), logits })
    }

    /// Reads one token of each answer, and answers logits of the next.
    ///
    /// # Errors
    ///
    /// When the state is another's.
    pub fn next(&self, tokens: &[i64], state: &mut State) -> Result<Tensor, ModelError> {
        let weights = state.weights();
        let documents = weights.len() / tokens.len().max(1);
        if documents * tokens.len() != weights.len() || weights.is_empty() {
            let expected = format!("a token for some of {} documents each", weights.len());
            return Err(ModelError::State { place: "documents", expected, found: tokens.len().to_string() });
        }
        let repeated: Vec<i64> = tokens.iter().flat_map(|&token| std::iter::repeat_n(token, documents)).collect();
        let logits = self.generator.next(&repeated, state)?;
        let run = || {
            let weights = Tensor::new(logits.engine(), weights, &[tokens.len(), documents])?;
            marginalised(&logits, &weights)
        };
        run().map_err(ModelError::at("logits"))
    }

    /// The vector of each question: `[questions, width]`.
    fn asked(&self, inputs: &Inputs) -> Result<Tensor, ModelError> {
        let mut question = Inputs::default();
        for name in ["input_ids", "attention_mask"] {
            inputs.pass(name, &mut question, name, |x| Ok(x.clone())).map_err(ModelError::at(name))?;
        }
        let mut outputs = self.question.answer(&question)?;
        outputs.pop().map(|(_, vector)| vector).ok_or_else(ModelError::no_generation)
    }

    /// How many documents each question has.
    fn documents(&self, inputs: &Inputs) -> Result<usize, ModelError> {
        let documents = inputs.number("n_docs").map_or(self.documents, |count| count as usize);
        let contexts = inputs.tensor("context_input_ids")?.dims();
        let count = contexts.first().copied().unwrap_or(0);
        if documents == 0 || !count.is_multiple_of(documents) {
            return Err(ModelError::input(
                "context_input_ids",
                &format!("[questions * {documents}, tokens]"),
                contexts,
            ));
        }
        if let Some(answers) =
            inputs.optional("decoder_input_ids").filter(|it| it.dims().first() != Some(&(count / documents)))
        {
            let expected = format!("[{}, tokens]", count / documents);
            return Err(ModelError::input("decoder_input_ids", &expected, answers.dims()));
        }
        Ok(documents)
    }

    /// How well documents fit their question: `[questions, documents]`.
    fn scores(&self, inputs: &Inputs, documents: usize) -> Result<Option<Tensor>, ModelError> {
        let scores = match (inputs.optional("doc_scores"), inputs.optional("retrieved_doc_embeds")) {
            (Some(scores), _) => scores.clone(),
            (None, None) => return Ok(None),
            (None, Some(vectors)) => {
                let question = self.asked(inputs)?;
                let scores = question.unsqueeze(1).and_then(|it| it.matmul(&vectors.transpose(1, 2)?)?.squeeze(1));
                scores.map_err(ModelError::at("retrieved_doc_embeds"))?
            }
        };
        let contexts = inputs.tensor("context_input_ids")?.dims().first().copied().unwrap_or(0);
        if *scores.dims() != [contexts / documents, documents] {
            let expected = format!("[{}, {documents}]", contexts / documents);
            return Err(ModelError::input("doc_scores", &expected, scores.dims()));
        }
        Ok(Some(scores))
    }
}

/// The documents as the generator's own inputs.
fn contexts(inputs: &Inputs) -> Result<Inputs, ModelError> {
    let mut given = Inputs::default();
    for (name, own) in [("context_input_ids", "input_ids"), ("context_attention_mask", "attention_mask")] {
        inputs.pass(name, &mut given, own, |x| Ok(x.clone())).map_err(ModelError::at(name))?;
    }
    Ok(given)
}

/// The logarithm of the sum of the documents' probabilities: `[questions * documents, .., vocabulary]` and weights
/// `[questions, documents]`, which are logarithms, to `[questions, .., vocabulary]`.
fn marginalised(logits: &Tensor, weights: &Tensor) -> Result<Tensor, TensorError> {
    let [questions, documents] = weights.sizes()?;
    let rest = &logits.dims()[1..];
    let each = log_softmax(logits)?.reshape(&[&[questions, documents], rest].concat())?;
    let weights = weights.reshape(&[vec![questions, documents], vec![1; rest.len()]].concat())?;
    log_sum(&each.add(&weights)?, 1)?.squeeze(1)
}

/// The logarithm of the softmax along the last dimension.
fn log_softmax(x: &Tensor) -> Result<Tensor, TensorError> {
    x.sub(&log_sum(x, -1)?)
}

/// The logarithm of the sum of the exponentials along a dimension, which becomes 1.
fn log_sum(x: &Tensor, axis: isize) -> Result<Tensor, TensorError> {
    let largest = x.largest(&[axis])?;
    x.sub(&largest)?.exp()?.sum(&[axis])?.log()?.add(&largest)
}

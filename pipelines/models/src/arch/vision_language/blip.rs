//! BLIP (`transformers/models/blip`; <https://arxiv.org/abs/2201.12086>).

use crate::ModelError;
use crate::arch::decoder::{activation, sequential};
use crate::arch::vision::{attention, layers, patch_stack};
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace, ImageHead, no_such_head, unsupported};
use crate::config::Config;
use crate::rules::Rule;
use crate::spec::dual_encoder::{DualEncoderSpec, ImageSpec, TextPoolOf, TextPoolSpec, TextSpec};
use crate::spec::vision::{BackboneSpec, ImageSize, PatchSpec, PatchesSpec, PoolOf, PoolSpec};
use crate::spec::vision_language::{TaskSpec, VisionLanguageSpec, WriterSpec};
use crate::spec::{
    Activation, AttentionSpec, EmbedSpec, LayerSpec, MlpSpec, NormSpec, NormsSpec, PositionSpec, QkvLayout, Spec,
    StackSpec,
};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::VisionEncoderTextDecoder,
    hugging_face: HuggingFace { model_type: "blip", classes: CLASSES, spec, stack: STACK, heads: &[] },
    gguf: None,
};

const CLASSES: &[Class] = &[
    Class { name: "BlipForConditionalGeneration", head: HeadKind::Image(ImageHead::Caption), base: "" },
    Class { name: "BlipForQuestionAnswering", head: HeadKind::Image(ImageHead::Answer), base: "" },
    Class { name: "BlipForImageTextRetrieval", head: HeadKind::Image(ImageHead::Match), base: "" },
    Class { name: "BlipModel", head: HeadKind::Image(ImageHead::Similarity), base: "" },
];

const STACK: &[Rule] = &[
    Rule::new("image.patches", "vision_model.embeddings.patch_embedding"),
    Rule::new("image.class", "vision_model.embeddings.class_embedding"),
    Rule::new("image.positions", "vision_model.embeddings.position_embedding"),
    Rule::new("image.layers.{}.attn_norm", "vision_model.encoder.layers.{}.layer_norm1"),
    Rule::new("image.layers.{}.attn.qkv", "vision_model.encoder.layers.{}.self_attn.qkv"),
    Rule::new("image.layers.{}.attn.out", "vision_model.encoder.layers.{}.self_attn.projection"),
    Rule::new("image.layers.{}.mlp_norm", "vision_model.encoder.layers.{}.layer_norm2"),
    Rule::new("image.layers.{}.mlp.up", "vision_model.encoder.layers.{}.mlp.fc1"),
    Rule::new("image.layers.{}.mlp.down", "vision_model.encoder.layers.{}.mlp.fc2"),
    Rule::new("image.final_norm", "vision_model.post_layernorm"),
    Rule::new("image.pool_norm", "vision_model.post_layernorm"),
    Rule::new("image.projection", "visual_projection"),
    Rule::new("similarity.scale", "logit_scale"),
    Rule::new("text.pool", "text_model.pooler.dense"),
    Rule::new("text.projection", "text_projection"),
    Rule::new("head.match", "itm_head"),
    Rule::new("head.image", "vision_proj"),
    Rule::new("head.text", "text_proj"),
    Rule::new("head.dense", "text_decoder.cls.predictions.transform.dense"),
    Rule::new("head.norm", "text_decoder.cls.predictions.transform.LayerNorm"),
    Rule::new("head.next_token", "text_decoder.cls.predictions.decoder"),
    Rule::new("head.bias", "text_decoder.cls.predictions.bias"),
    Rule::new("text.embed", "text_model.embeddings.word_embeddings"),
    Rule::new("text.positions", "text_model.embeddings.position_embeddings"),
    Rule::new("text.embed_norm", "text_model.embeddings.LayerNorm"),
    Rule::new("text.layers.{}.attn.q", "text_model.encoder.layer.{}.attention.self.query"),
    Rule::new("text.layers.{}.attn.k", "text_model.encoder.layer.{}.attention.self.key"),
    Rule::new("text.layers.{}.attn.v", "text_model.encoder.layer.{}.attention.self.value"),
    Rule::new("text.layers.{}.attn.out", "text_model.encoder.layer.{}.attention.output.dense"),
    Rule::new("text.layers.{}.attn_sum_norm", "text_model.encoder.layer.{}.attention.output.LayerNorm"),
    Rule::new("text.layers.{}.mlp.up", "text_model.encoder.layer.{}.intermediate.dense"),
    Rule::new("text.layers.{}.mlp.down", "text_model.encoder.layer.{}.output.dense"),
    Rule::new("text.layers.{}.mlp_sum_norm", "text_model.encoder.layer.{}.output.LayerNorm"),
    Rule::new("reader.embed", "text_encoder.embeddings.word_embeddings"),
    Rule::new("reader.positions", "text_encoder.embeddings.position_embeddings"),
    Rule::new("reader.embed_norm", "text_encoder.embeddings.LayerNorm"),
    Rule::new("reader.layers.{}.attn.q", "text_encoder.encoder.layer.{}.attention.self.query"),
    Rule::new("reader.layers.{}.attn.k", "text_encoder.encoder.layer.{}.attention.self.key"),
    Rule::new("reader.layers.{}.attn.v", "text_encoder.encoder.layer.{}.attention.self.value"),
    Rule::new("reader.layers.{}.attn.out", "text_encoder.encoder.layer.{}.attention.output.dense"),
    Rule::new("reader.layers.{}.attn_sum_norm", "text_encoder.encoder.layer.{}.attention.output.LayerNorm"),
    Rule::new("reader.layers.{}.cross.q", "text_encoder.encoder.layer.{}.crossattention.self.query"),
    Rule::new("reader.layers.{}.cross.k", "text_encoder.encoder.layer.{}.crossattention.self.key"),
    Rule::new("reader.layers.{}.cross.v", "text_encoder.encoder.layer.{}.crossattention.self.value"),
    Rule::new("reader.layers.{}.cross.out", "text_encoder.encoder.layer.{}.crossattention.output.dense"),
    Rule::new("reader.layers.{}.cross_sum_norm", "text_encoder.encoder.layer.{}.crossattention.output.LayerNorm"),
    Rule::new("reader.layers.{}.mlp.up", "text_encoder.encoder.layer.{}.intermediate.dense"),
    Rule::new("reader.layers.{}.mlp.down", "text_encoder.encoder.layer.{}.output.dense"),
    Rule::new("reader.layers.{}.mlp_sum_norm", "text_encoder.encoder.layer.{}.output.LayerNorm"),
    Rule::new("writer.embed", "text_decoder.bert.embeddings.word_embeddings"),
    Rule::new("writer.positions", "text_decoder.bert.embeddings.position_embeddings"),
    Rule::new("writer.embed_norm", "text_decoder.bert.embeddings.LayerNorm"),
    Rule::new("writer.layers.{}.attn.q", "text_decoder.bert.encoder.layer.{}.attention.self.query"),
    Rule::new("writer.layers.{}.attn.k", "text_decoder.bert.encoder.layer.{}.attention.self.key"),
    Rule::new("writer.layers.{}.attn.v", "text_decoder.bert.encoder.layer.{}.attention.self.value"),
    Rule::new("writer.layers.{}.attn.out", "text_decoder.bert.encoder.layer.{}.attention.output.dense"),
    Rule::new("writer.layers.{}.attn_sum_norm", "text_decoder.bert.encoder.layer.{}.attention.output.LayerNorm"),
    Rule::new("writer.layers.{}.cross.q", "text_decoder.bert.encoder.layer.{}.crossattention.self.query"),
    Rule::new("writer.layers.{}.cross.k", "text_decoder.bert.encoder.layer.{}.crossattention.self.key"),
    Rule::new("writer.layers.{}.cross.v", "text_decoder.bert.encoder.layer.{}.crossattention.self.value"),
    Rule::new("writer.layers.{}.cross.out", "text_decoder.bert.encoder.layer.{}.crossattention.output.dense"),
    Rule::new("writer.layers.{}.cross_sum_norm", "text_decoder.bert.encoder.layer.{}.crossattention.output.LayerNorm"),
    Rule::new("writer.layers.{}.mlp.up", "text_decoder.bert.encoder.layer.{}.intermediate.dense"),
    Rule::new("writer.layers.{}.mlp.down", "text_decoder.bert.encoder.layer.{}.output.dense"),
    Rule::new("writer.layers.{}.mlp_sum_norm", "text_decoder.bert.encoder.layer.{}.output.LayerNorm"),
];

fn spec(config: &Config, kind: HeadKind) -> Result<Spec, ModelError> {
    let half = |key| config.section(key).map(Option::unwrap_or_default);
    let (text, image) = (half("text_config")?, half("vision_config")?);
    let (backbone, norm) = self::image(&image)?;
    let hidden = backbone.width();
    let task = match kind {
        HeadKind::Image(ImageHead::Similarity) => {
            let projection = Some(config.optional_size("projection_dim")?.unwrap_or(512));
            let stack = self::text(&text, None, false)?;
            let pool = TextPoolSpec { of: TextPoolOf::First, dense: Some((stack.hidden, Activation::Tanh)) };
            let text = Some(TextSpec { stack, pool, projection });
            let pool = PoolSpec { of: PoolOf::First, norm: Some(norm), dense: None };
            let image = Some(ImageSpec { backbone, pool, projection });
            return Ok(Spec::DualEncoder(Box::new(DualEncoderSpec { text, image, bias: false })));
        }
        HeadKind::Image(ImageHead::Caption) => TaskSpec::Caption(writer(&text)?),
        HeadKind::Image(ImageHead::Answer) => {
            TaskSpec::Answer { reader: self::text(&text, Some(hidden), false)?, writer: writer(&text)? }
        }
        HeadKind::Image(ImageHead::Match) => TaskSpec::Match {
            reader: self::text(&text, Some(hidden), false)?,
            space: config.optional_size("image_text_hidden_size")?.unwrap_or(256),
        },
        _ => return Err(no_such_head(kind)),
    };
    Ok(Spec::VisionLanguage(Box::new(VisionLanguageSpec { image: backbone, task })))
}

/// A stack of text; it looks at states of `source` elements where it looks at something.
fn text(config: &Config, source: Option<usize>, causal: bool) -> Result<StackSpec, ModelError> {
    let kind = config.optional_text("position_embedding_type")?.unwrap_or_else(|| "absolute".into());
    if kind != "absolute" {
        return Err(unsupported(&config.path("position_embedding_type"), kind, vec!["absolute"]));
    }
    let hidden = config.optional_size("hidden_size")?.unwrap_or(768);
    let norm = NormSpec::layer(config.optional_number("layer_norm_eps")?.unwrap_or(1e-12));
    let inner = config.optional_size("intermediate_size")?.unwrap_or(3072);
    let mlp = MlpSpec::plain(inner, activation(config, "hidden_act", "gelu")?);
    let attention = attention(config, hidden, 8, true)?;
    // The size of what is looked at stands in the text's own configuration too.
    let source = source.map(|source| config.optional_size("encoder_hidden_size").map(|size| size.unwrap_or(source)));
    let cross = source.transpose()?.map(|source| AttentionSpec { source: Some(source), ..attention.clone() });
    let norms = NormsSpec { cross_sum: cross.is_some().then_some(norm), ..NormsSpec::after(norm) };
    let layer = LayerSpec { cross, norms, ..sequential(norm, attention, mlp) };
    let rows = config.optional_size("max_position_embeddings")?.unwrap_or(512);
    let vocabulary = config.optional_size("vocab_size")?.unwrap_or(30_524);
    let embed = EmbedSpec {
        positions: PositionSpec::Learned { rows, first: 0, padding: None },
        norm: Some(norm),
        ..EmbedSpec::plain(vocabulary, hidden)
    };
    let stack = patch_stack(hidden, layers(config, "num_hidden_layers", 12)?, layer, None);
    Ok(StackSpec { embed, causal, ..stack })
}

fn writer(config: &Config) -> Result<WriterSpec, ModelError> {
    let hidden = config.optional_size("hidden_size")?.unwrap_or(768);
    let source = config.optional_size("encoder_hidden_size")?.unwrap_or(hidden);
    Ok(WriterSpec {
        stack: text(config, Some(source), true)?,
        activation: activation(config, "hidden_act", "gelu")?,
        norm: NormSpec::layer(config.optional_number("layer_norm_eps")?.unwrap_or(1e-12)),
        tied: config.truth_or("tie_word_embeddings", true)?,
        padding: config.optional_integer("pad_token_id")?.unwrap_or(0),
        first: config.optional_integer("bos_token_id")?.unwrap_or(30_522),
        last: config.optional_integer("sep_token_id")?.unwrap_or(102),
    })
}

/// What sees the image, and the norm after it.
fn image(config: &Config) -> Result<(BackboneSpec, NormSpec), ModelError> {
    let hidden = config.optional_size("hidden_size")?.unwrap_or(768);
    let norm = NormSpec::layer(config.optional_number("layer_norm_eps")?.unwrap_or(1e-5));
    let inner = config.optional_size("intermediate_size")?.unwrap_or(3072);
    let mlp = MlpSpec::plain(inner, activation(config, "hidden_act", "gelu")?);
    let embed = PatchSpec {
        channels: 3,
        image: ImageSize::Fixed(config.optional_area("image_size")?.unwrap_or([384; 2])),
        patch: config.optional_area("patch_size")?.unwrap_or([16; 2]),
        width: hidden,
        bias: true,
        patch_norm: None,
        mask: false,
        class: true,
        positions: true,
        norm: None,
    };
    let attention = AttentionSpec { layout: QkvLayout::Joined, ..attention(config, hidden, 12, true)? };
    let layer = sequential(norm, attention, mlp);
    let stack = patch_stack(hidden, layers(config, "num_hidden_layers", 12)?, layer, Some(norm));
    Ok((BackboneSpec::Patches(PatchesSpec { embed, stack }), norm))
}

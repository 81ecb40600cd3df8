//! The network of Stable Diffusion, Kandinsky and their like (`diffusers/models/unets/unet_2d_condition.py`;
//! <https://arxiv.org/abs/2112.10752>).

use super::{BLOCKS, Blocks, UNET, blocks};
use crate::ModelError;
use crate::arch::decoder::activation;
use crate::arch::{Arch, Architecture, Class, HeadKind, HuggingFace};
use crate::config::Config;
use crate::spec::unet::{AdditionSpec, ClassSpec, MomentSpec, SourceSpec, TimeEmbedSpec, UnetSpec, WavesSpec};
use crate::spec::{Activation, Spec};

/// The model type.
pub const ARCH: Arch = Arch {
    architecture: Architecture::Diffusion,
    hugging_face: HuggingFace {
        model_type: "diffusers-unet2d-condition",
        classes: &[Class { name: "UNet2DConditionModel", head: HeadKind::States, base: "" }],
        spec,
        stack: UNET,
        heads: BLOCKS,
    },
    gguf: None,
};

fn spec(config: &Config, _: HeadKind) -> Result<Spec, ModelError> {
    let channels = config.optional_sizes("block_out_channels")?.unwrap_or_else(|| vec![320, 640, 1280, 1280]);
    if channels.is_empty() {
        return Err(config.wrong("block_out_channels", "at least one size").into());
    }
    let cosines_first = config.truth_or("flip_sin_to_cos", true)?;
    let shift = config.optional_number("freq_shift")?.unwrap_or(0.0) as f32;
    let waves = |width| WavesSpec { width, cosines_first, shift };
    let unknown = |key: &str, found: String, supported: &str| ModelError::Unsupported {
        what: config.path(key),
        found,
        supported: supported.to_owned(),
    };
    let kind = config.optional_text("time_embedding_type")?.unwrap_or_else(|| "positional".to_owned());
    let time_width = config.optional_size("time_embedding_dim")?;
    let (moment, waves_width, time_width) = match kind.as_str() {
        "positional" => (MomentSpec::Waves(waves(channels[0])), channels[0], time_width.unwrap_or(4 * channels[0])),
        "fourier" => {
            let width = time_width.unwrap_or(2 * channels[0]);
            (MomentSpec::Learned(waves(width / 2 * 2)), width, width)
        }
        _ => return Err(unknown("time_embedding_type", kind, "positional, fourier")),
    };
    let act = activation(config, "act_fn", "silu")?;
    let time = TimeEmbedSpec {
        inputs: waves_width,
        width: time_width,
        activation: act,
        last: activation(config, "timestep_post_act", "linear")?,
        condition: config.optional_size("time_cond_proj_dim")?,
    };
    let class_beside = config.truth_or("class_embeddings_concat", false)?;
    let blocks_width = if class_beside { 2 * time_width } else { time_width };
    let Blocks { down, mid, up, source } = blocks(config, &channels, blocks_width, act)?;
    Ok(Spec::Unet(Box::new(UnetSpec {
        inputs: config.optional_size("in_channels")?.unwrap_or(4),
        outputs: config.optional_size("out_channels")?.unwrap_or(4),
        first_taps: config.optional_size("conv_in_kernel")?.unwrap_or(3),
        last_taps: config.optional_size("conv_out_kernel")?.unwrap_or(3),
        centred: config.truth_or("center_input_sample", false)?,
        moment,
        time,
        class: class(config, TimeEmbedSpec { last: Activation::Identity, condition: None, ..time })?,
        class_beside,
        addition: addition(config, &waves, time_width, source)?,
        time_activation: activation(config, "time_embedding_act_fn", "linear")?,
        source: source_layers(config, source)?,
        down,
        mid,
        up,
        channels: channels[0],
        groups: config.optional_size("norm_num_groups")?.unwrap_or(32),
        eps: config.optional_number("norm_eps")?.unwrap_or(1e-5) as f32,
        activation: act,
    })))
}

fn class(config: &Config, time: TimeEmbedSpec) -> Result<ClassSpec, ModelError> {
    let inputs = || config.size("projection_class_embeddings_input_dim");
    let kind = config.optional_text("class_embed_type")?;
    Ok(match kind.as_deref() {
        None => config.optional_size("num_class_embeds")?.map_or(ClassSpec::None, ClassSpec::Table),
        Some("timestep") => ClassSpec::Moment(time),
        Some("identity") => ClassSpec::Identity,
        Some("projection") => ClassSpec::Layers(TimeEmbedSpec::plain(inputs()?, time.width)),
        Some("simple_projection") => ClassSpec::Linear(inputs()?),
        Some(found) => {
            let supported = "timestep, identity, projection, simple_projection".into();
            let what = config.path("class_embed_type");
            return Err(ModelError::Unsupported { what, found: found.to_owned(), supported });
        }
    })
}

fn addition(
    config: &Config,
    waves: &dyn Fn(usize) -> WavesSpec,
    time_width: usize,
    source: usize,
) -> Result<AdditionSpec, ModelError> {
    let kind = config.optional_text("addition_embed_type")?;
    Ok(match kind.as_deref() {
        None => AdditionSpec::None,
        Some("text") => AdditionSpec::Text {
            inputs: config.optional_size("encoder_hid_dim")?.unwrap_or(source),
            heads: config.optional_size("addition_embed_type_num_heads")?.unwrap_or(64),
        },
        Some("text_image") => AdditionSpec::TextImage(source),
        Some("text_time") => AdditionSpec::TextTime(
            waves(config.size("addition_time_embed_dim")?),
            TimeEmbedSpec::plain(config.size("projection_class_embeddings_input_dim")?, time_width),
        ),
        Some("image") => AdditionSpec::Image(config.size("encoder_hid_dim")?),
        Some(found) => {
            let supported = "text, text_image, text_time, image".into();
            let what = config.path("addition_embed_type");
            return Err(ModelError::Unsupported { what, found: found.to_owned(), supported });
        }
    })
}

fn source_layers(config: &Config, width: usize) -> Result<SourceSpec, ModelError> {
    let Some(inputs) = config.optional_size("encoder_hid_dim")? else { return Ok(SourceSpec::AsIs) };
    let kind = config.optional_text("encoder_hid_dim_type")?;
    Ok(match kind.as_deref() {
        None | Some("text_proj") => SourceSpec::Text { inputs, width },
        // How many states an image makes is no part of the configuration (`embeddings.py`).
        Some("text_image_proj") => SourceSpec::TextImage { inputs, width, count: 10 },
        Some("image_proj") => SourceSpec::Image { inputs, width, count: 32 },
        Some(found) => {
            let supported = "text_proj, text_image_proj, image_proj".into();
            let what = config.path("encoder_hid_dim_type");
            return Err(ModelError::Unsupported { what, found: found.to_owned(), supported });
        }
    })
}

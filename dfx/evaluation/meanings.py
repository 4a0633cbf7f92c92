"""Readable names and explanations of the metrics of an evaluation."""

TITLES = {
    "loss": "Loss",
    "mrstft": "Spectral error",
    "mrstft_level_matched": "Spectral error at equal level",
    "mfcc_cosine": "Timbre distance over time",
    "mfcc_cosine_per_frame": "Timbre distance per frame",
    "esr": "Waveform error",
    "lufs_difference": "Loudness difference [LU]",
    "crest_factor_difference_db": "Crest factor difference [dB]",
    "centroid_difference_hz": "Brightness difference [Hz]",
    "bark_spectral_distortion": "Auditory error",
    "latency_samples": "Delay [samples]",
    "polarity": "Polarity",
    "removed_db": "Removed [dB]",
    "kept_db": "Kept [dB]",
    "damage_db": "Damage [dB]",
}
"""A readable name for every metric that a file may have, with its unit."""

EXPLAINED = {
    "loss": "The training loss, here of whole files.",
    "mrstft": "Multi-resolution STFT error (MRSTFT) between output and target.",
    "mrstft_level_matched": "MRSTFT after scaling the output to the target's level.",
    "mfcc_cosine": "Cosine distance of each MFCC along time, as in the paper's code.",
    "mfcc_cosine_per_frame": "Cosine distance of the MFCCs of a frame, averaged over frames.",
    "esr": "Error-to-signal ratio (ESR): energy of the difference over the target's.",
    "lufs_difference": "Difference of integrated loudness.",
    "crest_factor_difference_db": "Difference of the ratios of peak to RMS.",
    "centroid_difference_hz": "Difference of the mean frequencies of the spectra.",
    "bark_spectral_distortion": "Bark spectral distortion (BSD): difference of the loudness per critical band.",
    "latency_samples": "Remaining delay of the output; at best 0.",
    "polarity": "1, or −1 if the output is inverted.",
    "removed_db": "Change of level where the target removes something.",
    "kept_db": "Change of level elsewhere; at best 0.",
    "damage_db": "Mean distance from the input's level elsewhere.",
}
"""A sentence for each of them."""

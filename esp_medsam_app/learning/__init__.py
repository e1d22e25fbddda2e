"""From submitted labels to a better version of one modality."""

"""The front door: the OpenAI-compatible API, the policy around the predictor, its reports."""

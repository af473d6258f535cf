"""The OpenAI Responses protocol: POST /v1/responses, whole or as events, and what is kept of it."""

"""What the server says about itself: OpenAPI, llms.txt, the front page."""

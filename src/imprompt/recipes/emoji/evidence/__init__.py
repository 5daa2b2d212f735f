"""The paper's claims on the embedded model: what is drawn, how it is judged, and the page that tells it."""

# Verifies a token by JWKS alone, with a second implementation. Reads one JSON object, prints the claims.
import json
import sys

import jwt

given = json.load(sys.stdin)
header = jwt.get_unverified_header(given["token"])
assert header["typ"] == "at+jwt", header
key = next(k for k in jwt.PyJWKSet.from_dict(given["jwks"]).keys if k.key_id == header["kid"])
claims = jwt.decode(
    given["token"],
    key.key,
    algorithms=["ES256"],
    audience=given["audience"],
    issuer=given["issuer"],
    options={"require": ["exp", "iat", "nbf", "iss", "sub", "aud", "jti"]},
)
json.dump(claims, sys.stdout)

import { invalid } from './refusal.ts';
import { parseStrictObject, StrictJsonError } from './strict-json.ts';

/** Longest token that is looked at, in characters (a token is ASCII). Real ones are well under 4 KiB. */
const maxTokenLength = 8192;

/** A token's content. Nothing in it has been verified. */
export interface ParsedToken {
  header: Readonly<Record<string, unknown>>;
  claims: Readonly<Record<string, unknown>>;
  alg: string;
  kid: string | undefined;
}

const maxKidLength = 256;

/**
 * Reads a JWS in compact serialisation, strictly: one text has one meaning and one meaning has one text, so that the
 * hash of a token stands for the token (attestation.ts) and no other reader sees other claims in it.
 */
export function parseToken(token: string, maxLength = maxTokenLength): ParsedToken {
  checkLength(token, maxLength);
  const parts = token.split('.', 4);
  if (parts.length !== 3) {
    throw invalid('The attestation is not a signed JWT (three parts with dots between). Send the token alone.');
  }
  const [headerBytes, claimBytes] = parts.map(decodeSegment) as [Buffer, Buffer, Buffer];
  const header = readObject(headerBytes, 'header');
  const claims = readObject(claimBytes, 'payload');
  const { alg, kid } = header;
  if (typeof alg !== 'string') throw invalid("The attestation's header has no `alg`. Get a signed token.");
  if (kid !== undefined && (typeof kid !== 'string' || kid.length === 0 || kid.length > maxKidLength)) {
    throw invalid(`The attestation's \`kid\` is not a string of 1 to ${maxKidLength} characters. Get a new token.`);
  }
  return { header, claims, alg, kid };
}

/** First of all: everything else, hashing included, costs time in proportion to the length. */
export function checkLength(token: string, maxLength = maxTokenLength): void {
  if (token.length > maxLength) {
    throw invalid(`The attestation is longer than ${maxLength} bytes. Send the bare token, with fewer claims.`);
  }
}

/** RFC 7515 §2: no padding. Also no stray characters and no spare bits, all of which Node's decoder would forgive. */
function decodeSegment(segment: string): Buffer {
  const bytes = Buffer.from(segment, 'base64url');
  if (bytes.length === 0 || bytes.toString('base64url') !== segment) {
    throw invalid('A part of the attestation is empty or not unpadded base64url. Send the token unchanged.');
  }
  return bytes;
}

function readObject(bytes: Buffer, part: 'header' | 'payload'): Record<string, unknown> {
  try {
    return parseStrictObject(bytes);
  } catch (error) {
    if (!(error instanceof StrictJsonError)) throw error;
    throw invalid(`The attestation's ${part} ${error.message}. Get a token from an issuer that writes plain JSON.`);
  }
}

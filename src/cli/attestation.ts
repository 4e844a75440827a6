import { open } from 'node:fs/promises';
import { CliError } from './cli-error.ts';

const mostBytes = 64 * 1024;

/**
 * The caller's attestation. A file wins over the environment: what fetches SVIDs renews a file, and a variable that was
 * exported an hour ago is stale. There is no option that takes the token itself: arguments are readable by every user.
 */
export async function readAttestation(tokenFile: string | undefined): Promise<string> {
  const token = tokenFile === undefined ? process.env.LEASEHOLD_TOKEN?.trim() : await readTokenFile(tokenFile);
  if (token === undefined || token === '') {
    throw new CliError(
      'unauthenticated',
      tokenFile === undefined
        ? 'there is no attestation to send; give --token-file FILE, or set LEASEHOLD_TOKEN_FILE or LEASEHOLD_TOKEN'
        : `the token file ${tokenFile} is empty; have the attestation written to it and try again`,
      { reason: 'ATTESTATION_MISSING' },
    );
  }
  // RFC 6750 §2.1 b64token: anything else is not a token, and would be an invalid header.
  if (!/^[A-Za-z0-9._~+/-]+=*$/.test(token)) {
    const where = tokenFile === undefined ? 'LEASEHOLD_TOKEN' : tokenFile;
    throw new CliError('unauthenticated', `${where} does not hold one token; it has characters that no token has`, {
      reason: 'ATTESTATION_INVALID',
    });
  }
  return token;
}

async function readTokenFile(path: string): Promise<string> {
  try {
    const file = await open(path);
    try {
      const { bytesRead, buffer } = await file.read(Buffer.alloc(mostBytes + 1), 0, mostBytes + 1, 0);
      if (bytesRead > mostBytes) throw new Error('it is larger than 64 KiB');
      return buffer.toString('utf8', 0, bytesRead).trim();
    } finally {
      await file.close();
    }
  } catch (error) {
    throw new CliError(
      'unauthenticated',
      `the token file ${path} cannot be read (${(error as Error).message}); check --token-file or LEASEHOLD_TOKEN_FILE`,
      { reason: 'ATTESTATION_MISSING', cause: error },
    );
  }
}

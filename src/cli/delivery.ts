import { randomBytes } from 'node:crypto';
import { open, rename, rm, stat } from 'node:fs/promises';
import { create } from '@bufbuild/protobuf';
import { CredentialSchema, type Credential } from '../gen/leasehold/v1/credential_service_pb.js';
import { CliError } from './cli-error.ts';
import { credentialJson, renderMaterial, showCredential } from './material.ts';
import type { MaterialOptions } from './material-options.ts';
import { line } from './output.ts';

/** Makes sure, before anything is issued, that the file can be written: a secret that cannot be delivered is a live secret that nobody holds. */
export async function checkOutput(path: string | undefined): Promise<void> {
  if (path === undefined) return;
  const existing = await stat(path).catch(() => undefined);
  if (existing?.isDirectory() === true) throw unwritable(path, 'it is a folder');
  const probe = temporaryName(path);
  try {
    await (await open(probe, 'wx', 0o600)).close();
    await rm(probe);
  } catch (error) {
    throw unwritable(path, (error as Error).message);
  }
}

/** Prints or writes one credential as the options say. */
export async function deliver(
  credential: Credential,
  options: MaterialOptions & { json?: boolean },
  requestId: string,
): Promise<void> {
  const format = options.format ?? (options.output === undefined ? undefined : 'json');
  const text = format === undefined ? undefined : renderMaterial(credential, format);
  if (format !== undefined && text === undefined) {
    const lease = credential.lease?.leaseId ?? '';
    throw new CliError(
      'usage',
      `a credential of provider ${credential.lease?.provider} cannot be written as ${format}; call again with another --format, or give it back with leasehold credential return ${lease}`,
      { reason: 'FORMAT_MISMATCH', requestId },
    );
  }
  if (options.output !== undefined && text !== undefined) {
    try {
      await replaceFile(options.output, text);
    } catch (error) {
      const failure = unwritable(options.output, (error as Error).message);
      throw new CliError('unexpected', failure.message, { ...failure.details, requestId });
    }
    const bare = create(CredentialSchema, {
      ...(credential.lease === undefined ? {} : { lease: credential.lease }),
      ...(credential.renewAfter === undefined ? {} : { renewAfter: credential.renewAfter }),
    });
    if (options.json === true) line(credentialJson(bare));
    else showCredential(bare, false);
  } else if (text !== undefined) process.stdout.write(text);
  else if (options.json === true) line(credentialJson(credential));
  else showCredential(credential, true);
}

/** Whoever reads the file sees the old credential or the new one, never half of one, and nobody else sees either. */
async function replaceFile(path: string, text: string): Promise<void> {
  const temporary = temporaryName(path);
  try {
    const file = await open(temporary, 'wx', 0o600);
    try {
      await file.writeFile(text);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

function temporaryName(path: string): string {
  return `${path}.${randomBytes(6).toString('hex')}.tmp`;
}

function unwritable(path: string, why: string): CliError {
  return new CliError('usage', `${path} cannot be written (${why}); choose another --output`, {
    reason: 'OUTPUT_UNWRITABLE',
  });
}

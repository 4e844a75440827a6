import { Option, type Command } from 'commander';
import { serverUrl } from './values.ts';

export const materialFormats = ['env', 'json', 'pgpass', 'token'] as const;
export type MaterialFormat = (typeof materialFormats)[number];

export interface MaterialOptions {
  format?: MaterialFormat;
  output?: string;
}

/** For credentials that only the holder of a key can use. Keys are files: arguments are readable by every user. */
export function withBinding(command: Command): Command {
  return command
    .option(
      '--dpop-key <file>',
      'private key (PEM or JWK, mode 0600) that the credential is bound to; make one with: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256',
    )
    .option('--dpop-issuer <url>', 'public URL of the broker, where it is not --server', serverUrl)
    .option(
      '--client-cert <file>',
      'TLS client certificate (PEM) that the credential is bound to, instead of --dpop-key',
    )
    .option('--client-key <file>', 'its private key (PEM, mode 0600)');
}

/** Where an issued secret goes, and how it is written. */
export function withMaterial(command: Command): Command {
  return command
    .addOption(
      new Option(
        '--format <format>',
        'the credential alone: env (shell exports), json, pgpass (a line for PGPASSFILE), token (the bare token)',
      ).choices(materialFormats),
    )
    .option(
      '--output <file>',
      'write the credential (as --format says, else json) to this file, mode 0600, and print only the lease',
    );
}

import { Option, type Command } from 'commander';

export const materialFormats = ['env', 'json', 'pgpass', 'token'] as const;
export type MaterialFormat = (typeof materialFormats)[number];

export interface MaterialOptions {
  format?: MaterialFormat;
  output?: string;
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

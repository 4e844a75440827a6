import { Option, type Command } from 'commander';
import { duration, serverUrl, uuid } from './values.ts';

/** What every command has: a line for the list, and examples. */
export interface Definition {
  name: string;
  summary: string;
  /** More than the summary, where a reader needs it. */
  description?: string;
  /** Each is a command line and what it is for. */
  examples: readonly (readonly [command: string, what: string])[];
}

export function define(parent: Command, definition: Definition): Command {
  const command = parent.command(definition.name).summary(definition.summary);
  command.description(definition.description ?? `${definition.summary}.`);
  const examples = definition.examples.map(([line, what]) => `  # ${what}\n  $ ${line}`);
  command.addHelpText('after', `\nExamples:\n${examples.join('\n')}`);
  return command;
}

/** Options of every command that calls a broker. */
export interface RemoteOptions {
  server: string;
  tokenFile?: string;
  caFile?: string;
  timeout: number;
  allowPlaintext?: boolean;
  json?: boolean;
}

export function defineRemote(parent: Command, definition: Definition): Command {
  const command = define(parent, definition);
  // The order of the help: what the command is about first.
  withJson(command.optionsGroup('Options:')).optionsGroup('Connection:');
  command.addOption(
    new Option('--server <url>', 'HTTP door of the broker')
      .env('LEASEHOLD_SERVER')
      .default('http://127.0.0.1:7080')
      .argParser(serverUrl),
  );
  command.addOption(
    new Option(
      '--token-file <file>',
      'file with the attestation (JWT-SVID or OIDC token), read anew for each call; or the token itself in LEASEHOLD_TOKEN',
    ).env('LEASEHOLD_TOKEN_FILE'),
  );
  command.addOption(
    new Option('--ca-file <file>', 'PEM file with the authorities to trust, instead of the system’s').env(
      'LEASEHOLD_CA_FILE',
    ),
  );
  command.addOption(
    new Option('--timeout <duration>', 'longest wait for an answer, retries included (a stream: for its first message)')
      .env('LEASEHOLD_TIMEOUT')
      .default(15_000, '15s')
      .argParser(duration),
  );
  command.addOption(
    new Option('--allow-plaintext', 'send the attestation over http:// to another machine')
      .env('LEASEHOLD_ALLOW_PLAINTEXT')
      .argParser((value) => value === '1' || value === 'true'),
  );
  return command.optionsGroup('Options:');
}

export function withJson(command: Command): Command {
  return command.option('--json', 'machine-readable output: protobuf JSON, one document per line');
}

/** For commands that change something (AIP-155). */
export function withRequestId(command: Command): Command {
  return command.option('--request-id <uuid>', 'repeat an earlier call without doing it twice', uuid);
}

/** Adds a node that only has subcommands. */
export function group(parent: Command, name: string, summary: string): Command {
  return parent.command(name).summary(summary).description(`${summary}.`).helpCommand(false);
}

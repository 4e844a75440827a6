import { randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { InvalidArgumentError, Option, type Command } from 'commander';
import type { JsonObject } from '@bufbuild/protobuf';
import type { RemoteOptions } from './define.ts';
import type * as Remote from './remote.ts';
import { CliError } from './cli-error.ts';
import { collect, identifier, requestArgument, toolAndTier, type ToolAndTier } from './values.ts';

/** What was asked of a tool, as `call begin` and `call record` take it. */
export interface CallOptions {
  lease?: string;
  tool?: ToolAndTier;
  action: string;
  argument?: [string, string | number | boolean][];
  argumentsFile?: string;
  argumentsDigest?: string;
  about?: string;
  requestId?: string;
}

export interface CallEndOptions {
  outcome: 'succeeded' | 'failed' | 'refused' | 'unknown';
  error?: string;
  object?: string[];
  rows?: number;
  externalId?: string[];
  note?: string;
}

const text = (value: string) => value;
export const outcomeNames = ['succeeded', 'failed', 'refused', 'unknown'] as const;

export function withCall(command: Command): Command {
  return command
    .option(
      '--lease <lease>',
      'lease whose credential is used; without it the call is recorded and raised',
      identifier('lse'),
    )
    .option('--tool <tool:tier>', 'tool and tier that are called, where no lease says it', toolAndTier)
    .requiredOption('--action <action>', 'what is done, such as reports.read')
    .option('--argument <name=value>', 'an argument of the call; repeat it for more', collect(requestArgument))
    .option('--arguments-file <file>', 'JSON file with all arguments; the broker keeps their digest')
    .option('--arguments-digest <digest>', 'sha256:… over the canonical arguments (RFC 8785), when they must not leave')
    .option('--about <call>', "from a tool: the agent's own record of the call", identifier('cal'));
}

export function withCallEnd(command: Command): Command {
  return command
    .addOption(new Option('--outcome <outcome>', 'how it ended').choices(outcomeNames).makeOptionMandatory())
    .option('--error <text>', 'why it failed; recorded, never decides')
    .option(
      '--object <object>',
      'what was read or changed, such as table:public.orders; repeat it for more',
      collect(text),
    )
    .option('--rows <number>', 'rows or items that were read or changed', rows)
    .option('--external-id <id>', 'what the tool knows the result by; repeat it for more', collect(text))
    .option('--note <text>', 'free text; recorded, never decides');
}

/** The broker's bound on such numbers is that of JSON (2^53). */
function rows(value: string): number {
  const number = /^\d{1,16}$/.test(value) ? Number(value) : NaN;
  if (!Number.isSafeInteger(number)) throw new InvalidArgumentError('It is a whole number.');
  return number;
}

async function argumentsOf(options: CallOptions): Promise<JsonObject | undefined> {
  const { argument, argumentsFile } = options;
  if (argumentsFile === undefined) return argument && Object.fromEntries(argument);
  let parsed: unknown;
  try {
    parsed = JSON.parse(await readFile(argumentsFile, 'utf8'));
  } catch (error) {
    const message = `the file of --arguments-file cannot be read as JSON: ${(error as Error).message}`;
    throw new CliError('usage', message, { reason: 'USAGE' });
  }
  if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed)) {
    throw new CliError('usage', 'the file of --arguments-file holds no JSON object', { reason: 'USAGE' });
  }
  return { ...(parsed as JsonObject), ...Object.fromEntries(argument ?? []) };
}

export function effectOf({ object, rows: count, externalId, note }: CallEndOptions) {
  return {
    objects: object ?? [],
    externalIds: externalId ?? [],
    note: note ?? '',
    ...(count === undefined ? {} : { rows: BigInt(count) }),
  };
}

/** What a call is, begun or recorded at once. `remote` is loaded only by what calls the broker. */
export async function callRequest(remote: typeof Remote, taskId: string, options: CallOptions & RemoteOptions) {
  const args = await argumentsOf(options);
  return {
    requestId: options.requestId ?? randomUUID(),
    taskId,
    leaseId: options.lease ?? '',
    tool: options.tool?.tool ?? '',
    tier: options.tool === undefined ? remote.Tier.UNSPECIFIED : remote.tierValue[options.tool.tier],
    action: options.action,
    argumentsDigest: options.argumentsDigest ?? '',
    aboutCallId: options.about ?? '',
    ...(args === undefined ? {} : { arguments: args }),
  };
}

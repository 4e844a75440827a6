import { CommanderError } from 'commander';
import { CliError, humanError, jsonError } from './cli-error.ts';
import { exitCodes } from './exit-codes.ts';
import { buildProgram } from './program.ts';

/** Parses, runs, and turns whatever is thrown into one line on stderr and an exit code. */
export async function runCli(args: readonly string[]): Promise<void> {
  // A reader that goes away (`| head`) is not a defect.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    process.exit(error.code === 'EPIPE' ? exitCodes.outputClosed.code : exitCodes.unexpected.code);
  });
  try {
    await buildProgram().parseAsync(args, { from: 'user' });
  } catch (thrown) {
    if (thrown instanceof CommanderError && thrown.exitCode === 0) return;
    const error = asCliError(thrown);
    const json = args.includes('--json');
    process.stderr.write(`${json ? jsonError(error) : humanError(error)}\n`);
    process.exitCode = exitCodes[error.exit].code;
  }
}

function asCliError(thrown: unknown): CliError {
  if (thrown instanceof CliError) return thrown;
  if (thrown instanceof CommanderError) return new CliError('usage', usageSentence(thrown), { reason: 'USAGE' });
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  return new CliError('unexpected', message, { reason: 'UNEXPECTED', cause: thrown });
}

function usageSentence(error: CommanderError): string {
  // Help was asked for by leaving out the subcommand: it is on stderr already.
  if (error.code === 'commander.help') return 'a subcommand is missing; choose one of those above';
  const sentence = error.message.replace(/^error: /, '').replace(/\s*\n\s*/g, ' ');
  return `${sentence}${/[.)?]$/.test(sentence) ? '' : ';'} see leasehold help`;
}

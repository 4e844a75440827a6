import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';

/** A child process that answers each message with one message. */
export interface Child<Question, Answer> {
  ask(question: Question): Promise<Answer>;
  /** Closes the channel, at which the child ends by itself, and waits for that. */
  stop(): Promise<void>;
}

const stopTimeout = 15_000;

/** Starts `bench/<name>.ts`; its output goes to our stderr, because stdout is for results. */
export function startChild<Question extends object, Answer>(
  name: string,
  args: readonly string[],
  {
    nodeOptions = [],
    env = {},
    ownSession = false,
  }: { nodeOptions?: readonly string[]; env?: Record<string, string>; ownSession?: boolean } = {},
): { child: Child<Question, Answer>; first: <T>() => Promise<T> } {
  const running = fork(path.join(import.meta.dirname, `${name}.ts`), args, {
    // Typed arrays cross as they are.
    serialization: 'advanced',
    execArgv: [...nodeOptions],
    env: { ...process.env, ...env },
    detached: ownSession,
    stdio: ['ignore', 2, 2, 'ipc'],
  });
  const next = <T>() => message<T>(running, name);
  return {
    first: next,
    child: {
      ask: async (question) => {
        const answer = next<Answer>();
        running.send(question);
        return await answer;
      },
      stop: async () => {
        if (running.exitCode !== null || running.signalCode !== null) return;
        const ended = once(running, 'exit');
        if (running.connected) running.disconnect();
        const late = setTimeout(() => running.kill('SIGKILL'), stopTimeout);
        await ended;
        clearTimeout(late);
      },
    },
  };
}

async function message<T>(child: ChildProcess, name: string): Promise<T> {
  return await new Promise<T>((resolve, reject) => {
    const done = () => {
      child.off('message', onMessage);
      child.off('exit', onExit);
    };
    const onMessage = (answer: unknown) => {
      done();
      resolve(answer as T);
    };
    const onExit = (code: number | null, signal: string | null) => {
      done();
      reject(new Error(`the ${name} process ended (${signal ?? code}) before it answered`));
    };
    child.on('message', onMessage);
    child.on('exit', onExit);
  });
}
